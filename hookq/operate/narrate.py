"""What `make run` says once it is up: what runs where, how to try it, and each attempt as it ends.

It writes to a terminal that may be gone: that is no reason to stop. Secrets are shown once, on a
terminal only. Does not promise every event: at most FOLLOWED lines per look, and none while Redis
is unavailable.
"""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from hookq import daemon
from hookq.operate import story
from hookq.settings import VERSION, Settings
from hookq.store import figures
from hookq.store.client import Client
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.records import Event

FOLLOW_S = 0.5  # between two looks at what happened
FOLLOWED = 20  # events shown per look: no more than a person can read


def say(*words: str) -> None:
    """Print a line; a terminal that is gone is no reason to leave children behind."""
    try:
        print(*words, flush=True)
    except OSError:
        pass


def banner(settings: Settings, generated: dict[str, str]) -> None:
    """Say what runs where and how to try it. `generated` are the secrets of a first start."""
    shown = generated if sys.stdout.isatty() else {}
    supervisor = f"supervisor {version('supervisor')}"
    say(f"webhookd {VERSION} (python {platform.python_version()}, {supervisor})")
    redis_line, risks = describe_redis(settings)
    say("  " + ("warn" if risks else "ok  "), "redis     ", redis_line)
    for risk in risks:
        say("                  ", risk)
    where = f"http://{settings.host}:{settings.port}/api/webhooks/"
    for name in sorted(settings.sources) if settings.ingest_processes else ():
        say("  ok   ingestion ", where + name, f"  {settings.ingest_processes} processes")
    say("  ok  " if settings.workers else "  warn", "worker    ", f"{settings.workers} processes")
    login = "password in .env"
    if "DASHBOARD_PASSWORD" in shown:
        login = f"password {shown['DASHBOARD_PASSWORD']}  (kept in .env)"
    page = f"http://{settings.dashboard_host}:{settings.dashboard_port}/dashboard"
    say("  ok   dashboard ", f"{page}   user operator, {login}")
    if "WEBHOOK_SECRET" in shown:
        say("\n  The secret to give to GitHub (kept in .env):", shown["WEBHOOK_SECRET"])
    for row in hints(settings):
        say(row)


def hints(settings: Settings) -> Iterator[str]:
    """Yield the commands to try next. They need what this start was given by its environment: else
    they would reach another instance.
    """
    names = ["HOST", "PORT", "STATE_DIR", "WEBHOOKS_FILE"]
    names += [] if settings.redis_embedded else ["REDIS_URL", "REDIS_URL_FILE"]
    given = "".join(
        f"{name}={'…' if name == 'REDIS_URL' else shlex.quote(os.environ[name])} "
        for name in names
        if os.environ.get(name)
    )
    default = settings.state_dir == daemon.root() / "var"
    socket = "" if default else f" -s unix://{settings.state_dir}/supervisor.sock"
    send = f"{given}.venv/bin/python webhookd.py --send"
    yield f"\n  Try it      {send}           a signed GitHub push, followed to the end"
    yield f"              {send} --fail    one that ends as a dead letter"
    yield (
        f"  Operate     {given}.venv/bin/dlqctl --view        "
        f".venv/bin/supervisorctl -c supervisord.conf{socket} status"
    )
    yield "  Ctrl-C stops everything; the job in hand is finished first.\n"


def follow(settings: Settings, running: Callable[[], bool]) -> None:
    """Say how attempts end, while `running`."""
    store, last = Client(settings.redis_url, "launch", timeout_s=2.0), b""
    while running():
        try:
            last, events = figures.events_after(store, last, FOLLOWED + 1)
            for event in events[:FOLLOWED]:
                clock = time.strftime("%H:%M:%S", time.localtime(event.at))
                for line in lines(event):
                    say(f"{clock}  {line}")
            if len(events) > FOLLOWED:
                say("          …  more than can be shown: see the dashboard")
        except Away:
            pass  # the processes report that in their logs, and so does the dashboard
        time.sleep(FOLLOW_S)


def lines(event: Event) -> Iterator[str]:
    """Yield the lines of one event: --> for a delivery's arrival, <-- for the end of an attempt."""
    outcome = story.outcome(event)
    if outcome and event.facts.get("attempt") == 1:
        yield f"-->  {story.named(event)}  accepted"
    if outcome:
        hint = f"   .venv/bin/dlqctl --show {event.id}" if outcome == "dead" else ""
        yield story.line(event) + hint


def describe_redis(settings: Settings) -> tuple[str, list[str]]:
    """Return a line about Redis, and a sentence for each of its settings that can lose jobs."""
    where = f"unix:{settings.state_dir}/redis.sock" if settings.redis_embedded else "REDIS_URL"
    try:
        client = Client(settings.redis_url, "launch")
        client.check_format()
        facts, risks = figures.health(client, settings.durability)
    except NewerData as error:
        return where, [str(error)]
    except Away as error:
        return where, [
            f"Redis cannot be used ({error}): start it, or set REDIS_URL to what is right."
        ]
    parts = [facts.pop("version"), *(f"{name}={value}" for name, value in facts.items())]
    return "  ".join([where, *parts]), risks
