"""A signed sample for a running webhookd, followed to the end: the first minute of a new user, and
a probe.

It knows the daemon through its HTTP interface and the store, as any sender and operator would.
"""

import http.client
import json
import sys
import time
import uuid
from pathlib import Path

from hookq import log
from hookq.settings import Settings
from hookq.signing import sign
from hookq.store import reading
from hookq.store.client import Client
from hookq.store.connection import Away

PUSH = (
    b'{"ref":"refs/heads/main","after":"6dcb09b","commits":[{"message":"A '
    b'sample"}],"repository":{"full_name":"octocat/hello-world"}}'
)
BROKEN = b"Hello, World! This is no JSON."
FOLLOW_S = 60.0


def send_sample(settings: Settings, source: str, file: str, *, fail: bool) -> int:
    """Send one delivery and print its story; return the exit code: 0 done, 1 anything else, 69
    unreachable.
    """
    if source not in settings.sources:
        print(
            f"There is no source {source}; the settings have: "
            f"{', '.join(sorted(settings.sources))}.",
            file=sys.stderr,
        )
        return 3
    try:
        body = BROKEN if fail else Path(file).read_bytes() if file else PUSH
    except OSError as error:
        print(f"{log.printable(file)} cannot be read: {error.strerror}.", file=sys.stderr)
        return 1
    try:
        headers = sign(
            settings.sources[source].verifier, body, time.time(), str(uuid.uuid4()), "push"
        )
    except ValueError as error:
        print(f"It cannot be signed: {error}.", file=sys.stderr)
        return 1
    started = time.monotonic()
    try:
        code, answer = _post(settings, source, body, headers)
    except (OSError, http.client.HTTPException) as error:
        why = f"{settings.host}:{settings.port} does not answer ({error})"
        print(
            f"{why}. Start it with `make run`, or set HOST and PORT to where it runs.",
            file=sys.stderr,
        )
        return 69
    took = 1000 * (time.monotonic() - started)
    if code not in (200, 202):
        print(
            f"It was refused with {code}: {answer.get('reason')}. The log of webhookd in "
            "STATE_DIR says why.",
            file=sys.stderr,
        )
        return 1
    print(
        f"-->  {source}  push  {answer.get('id')}  {answer.get('status')}  {took:.1f} ms",
        flush=True,
    )
    try:
        return _follow(settings, source, str(answer["id"]), fail)
    except Away as error:
        print(f"It is safe, but Redis cannot be asked what became of it: {error}.", file=sys.stderr)
        return 69


def _post(
    settings: Settings, source: str, body: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=15)
    try:
        kind = {"Content-Type": "application/json"}
        connection.request("POST", f"/api/webhooks/{source}", body, {**kind, **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except ValueError as error:
        raise http.client.HTTPException(f"the answer is not webhookd's: {error}") from None
    finally:
        connection.close()


def _follow(settings: Settings, source: str, id: str, fail: bool) -> int:
    """Print what becomes of the delivery; return 0 when it ends as was wanted: done, or dead if it
    was made to `fail`.
    """
    store, told, end = Client(settings.redis_url, "sample"), 0, time.monotonic() + FOLLOW_S
    words = {"job.complete": "done", "job.reschedule": "retry", "job.bury": "dead"}
    while time.monotonic() < end:
        events = [event for event in reading.events(store, id) if event.event in words]
        for event in events[told:]:
            outcome, facts = words[event.event], event.facts
            attempt = f"{facts.get('attempt', 0)}/{facts.get('of', '?')}"
            again = f"  again within {facts['delay_s']:.0f} s" if outcome == "retry" else ""
            line = (
                f"<--  {source}  push  {id}  {outcome}  {attempt}  {facts.get('run_ms', 0)} "
                f"ms{again}  {log.printable(facts.get('error') or '')}"
            )
            print(line.rstrip(), flush=True)
            if outcome == "dead":
                print(
                    f"See it: .venv/bin/dlqctl --show {id}   put it back: .venv/bin/dlqctl "
                    "--retry N, with its number in --view"
                )
            if outcome != "retry":
                return 0 if (outcome == "dead") == fail else 1
        told = len(events)
        time.sleep(0.05)
    print(
        f"It is safe and not done yet after {FOLLOW_S:g} s. Follow it: .venv/bin/dlqctl --show "
        f"{id}",
        file=sys.stderr,
    )
    return 1
