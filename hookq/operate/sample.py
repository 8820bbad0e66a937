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
from hookq.operate import story
from hookq.settings import Settings
from hookq.signing import sign
from hookq.sources import Source
from hookq.store import reading
from hookq.store.client import Client
from hookq.store.connection import Away

PUSH = (
    b'{"ref":"refs/heads/main","after":"6dcb09b","commits":[{"message":"A '
    b'sample"}],"repository":{"full_name":"octocat/hello-world"}}'
)
BROKEN = b"Hello, World! This is no JSON."
FOLLOW_S = 60.0


class Failed(Exception):
    """The sample came to nothing: the message says why, `code` is the exit code."""

    def __init__(self, why: str, code: int = 1) -> None:
        super().__init__(why)
        self.code = code


def send_sample(settings: Settings, source: str, file: str, *, fail: bool) -> int:
    """Send one delivery and print its story; return the exit code: 0 done, 1 anything else, 3 no
    such source, 69 unreachable.
    """
    try:
        if source not in settings.sources:
            names = ", ".join(sorted(settings.sources))
            raise Failed(f"There is no source {source}; the settings have: {names}.", 3)
        id = _sent(settings, source, *_signed(settings.sources[source], file, fail))
        return _follow(Client(settings.redis_url, "sample"), id, fail)
    except Away as error:
        why, code = f"It is safe, but Redis cannot be asked what became of it: {error}.", 69
    except Failed as failed:
        why, code = str(failed), failed.code
    print(why, file=sys.stderr)
    return code


def _signed(source: Source, file: str, fail: bool) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of the sample."""
    try:
        body = BROKEN if fail else Path(file).read_bytes() if file else PUSH
    except OSError as error:
        raise Failed(f"{log.printable(file)} cannot be read: {error.strerror}.") from None
    try:
        return body, sign(source.verifier, body, time.time(), str(uuid.uuid4()), "push")
    except ValueError as error:
        raise Failed(f"It cannot be signed: {error}.") from None


def _sent(settings: Settings, source: str, body: bytes, headers: dict[str, str]) -> str:
    """Post the sample and print how it was answered; return the id of its job."""
    started = time.monotonic()
    try:
        code, answer = _post(settings, source, body, headers)
    except (OSError, http.client.HTTPException) as error:
        raise Failed(
            f"{settings.host}:{settings.port} does not answer ({error}). Start it with `make "
            "run`, or set HOST and PORT to where it runs.",
            69,
        ) from None
    took_ms = 1000 * (time.monotonic() - started)
    if code not in (200, 202):
        raise Failed(
            f"It was refused with {code}: {answer.get('reason')}. The log of webhookd in "
            "STATE_DIR says why."
        )
    id, status = str(answer["id"]), answer.get("status")
    print(f"-->  {source}  push  {id}  {status}  {took_ms:.1f} ms", flush=True)
    return id


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


def _follow(store: Client, id: str, fail: bool) -> int:
    """Print how its attempts end; return 0 when the last ends as was wanted: done, or dead if it
    was made to `fail`.
    """
    printed, end = 0, time.monotonic() + FOLLOW_S
    while time.monotonic() < end:
        events = [event for event in reading.events(store, id) if story.outcome(event)]
        for event in events[printed:]:
            outcome = story.outcome(event)
            print(story.line(event), flush=True)
            if outcome == "dead":
                print(
                    f"See it: .venv/bin/dlqctl --show {id}   put it back: .venv/bin/dlqctl "
                    "--retry N, with its number in --view"
                )
            if outcome != "retry":
                return 0 if (outcome == "dead") == fail else 1
        printed = len(events)
        time.sleep(0.05)
    raise Failed(
        f"It is safe and not done yet after {FOLLOW_S:g} s. Follow it: .venv/bin/dlqctl --show {id}"
    )
