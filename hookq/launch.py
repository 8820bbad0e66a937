"""Behind `make run` and `make reload`: checks what can be checked before anything starts, runs
supervisord, says what runs where.

It makes the secrets of a first start, holds the lock on STATE_DIR, and tries both ports: a taken
one would end supervisord with a traceback. Then it waits: for a signal, which it passes on, or for
supervisord's end.

Promises: when it ends, whatever it started has ended. Does not promise to notice edits: host,
ports, numbers of processes and STATE_DIR are those of the start; everything else is read anew by
the processes on HUP.
"""

import errno
import fcntl
import http.client
import os
import platform
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hookq import daemon, log
from hookq.operate import supervisord
from hookq.settings import EX_SETTINGS, VERSION, Invalid, Settings, load
from hookq.store import figures
from hookq.store.client import Client
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.records import Event

PORT_WAIT_S = 15.0  # a stack that is just stopping needs a moment to let go
STOP_GRACE_S = 10  # over the longest timeout_s, before a worker is killed
SETTLED_S = 1.5  # after which supervisord has started all its children
SLOW_S = 5.0  # until it says what it is waiting for
FOLLOW_S, FOLLOWED = (
    0.5,
    20,
)  # how often it is looked at what happened, and how many lines are said of that
READY_S = 60.0  # Redis reads its file first: a gigabyte of it takes about ten seconds
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MADE = ("WEBHOOK_SECRET", "DASHBOARD_PASSWORD")


def main() -> None:
    try:
        reload() if sys.argv[1:] == ["reload"] else run()
    except KeyboardInterrupt:  # before anything was started
        sys.exit(130)


def reload() -> None:
    """Make every process start anew with the settings of now, unless those are wrong: then say so,
    and leave all as it is.
    """
    settings = daemon.load_or_exit(lambda: load(root=daemon.root(), need=("DASHBOARD_PASSWORD",)))
    if problems := daemon.check_handlers(settings):
        daemon.refuse(problems)
    try:
        told = supervisord.reload_all(settings.state_dir)
    except supervisord.NoSupervisor as error:
        stop(f"webhookd does not run with STATE_DIR={settings.state_dir}: {error}.", 1)
    print(
        f"Told {', '.join(told)} to finish what they have and start anew. Who finds its "
        "settings wrong goes on with the old, and logs it."
    )


def run() -> None:
    root = daemon.root()
    os.chdir(root)
    made = make_secrets(root)
    try:
        settings = load(root=root, need=("DASHBOARD_PASSWORD",))
    except Invalid as error:
        stop("\n".join(error.problems))
    lock = lock_state(settings.state_dir)
    for name, host, port in ports(settings):
        wait_for_port(name, host, port)
    supervisor = start(root, settings)
    stopping = forward_signals(supervisor)
    if ready(settings, supervisor, stopping):
        banner(settings, made)
        follow(settings, supervisor)
    code = supervisor.wait()
    # all has ended well: one more Ctrl-C, while the interpreter ends, must not make it look
    # otherwise
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    lock.close()
    if not stopping:
        stop(
            f"supervisord ended by itself with {code}: see {settings.state_dir}/supervisord.log.", 1
        )


def say(*words: str) -> None:
    """Print a line; a terminal that is gone is no reason to leave children behind."""
    try:
        print(*words, flush=True)
    except OSError:
        pass


def stop(why: str, code: int = EX_SETTINGS) -> None:
    """End with a sentence."""
    print(why, file=sys.stderr)
    sys.exit(code)


def make_secrets(root: Path) -> dict[str, str]:
    """Write those secrets that are set nowhere into .env, readable by its owner only; return
    them.
    """
    try:
        settings: Any = load(root=root, sources=False)
    except Invalid:
        return {}  # main says what is wrong
    missing = [name for name in MADE if not getattr(settings, name.lower())]
    made = {
        name: secrets.token_hex(32) if name == "WEBHOOK_SECRET" else secrets.token_urlsafe(12)
        for name in missing
    }
    if made:
        try:
            _keep_secrets(root / ".env", made)
        except OSError as error:
            stop(
                f"{' and '.join(made)} are not set, and .env cannot be written "
                f"({error.strerror}): set them elsewhere, or as NAME_FILE."
            )
    return made


def _keep_secrets(path: Path, made: dict[str, str]) -> None:
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    # A line end first: the last line of a file somebody wrote by hand may lack its own.
    os.fchmod(file, 0o600)  # it may have been there, for all to read
    os.write(file, "".join(f"\n{name}={value}" for name, value in made.items()).encode() + b"\n")
    os.close(file)


def lock_state(folder: Path) -> Any:
    """Return the held lock on STATE_DIR: two instances in one would share a Redis file without
    knowing.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        stop(f"STATE_DIR {folder} cannot be used: {error.strerror}.")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stop(
            f"webhookd runs already with STATE_DIR={folder}; for a second one set another "
            "STATE_DIR and other ports.",
            1,
        )
    return lock


def ports(settings: Settings) -> list[tuple[str, str, int]]:
    page = ("DASHBOARD_PORT", settings.dashboard_host, settings.dashboard_port)
    return [("PORT", settings.host, settings.port), page] if settings.ingest_processes else [page]


def wait_for_port(name: str, host: str, port: int) -> None:
    """Return once host:port can be bound."""
    end, told = time.monotonic() + PORT_WAIT_S, False
    while True:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                probe.listen(
                    1
                )  # binding alone succeeds beside another that is bound with SO_REUSEADDR
                return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # waiting would not mend it
                stop(
                    f"{host}:{port} cannot be listened on ({error.strerror}): set "
                    f"{name.replace('PORT', 'HOST')} or {name} to what can."
                )
            if time.monotonic() > end:
                stop(f"{host}:{port} is taken by another program: set {name} to a free port.")
            if not told:
                told = True
                say(f"Waiting for {host}:{port}, which is taken by another program …")
        time.sleep(0.2)


def start(root: Path, settings: Settings) -> "subprocess.Popen[bytes]":
    """Start supervisord with what supervisord.conf expands; it ends with us, however we end."""
    names = (
        "host",
        "port",
        "ingest_processes",
        "workers",
        "state_dir",
        "redis_maxmemory",
        "dashboard_host",
        "dashboard_port",
    )
    exported = {name.upper(): str(getattr(settings, name)) for name in names}
    exported["WORKER_STOP_S"] = str(
        int(
            max((source.timeout_s for source in settings.sources.values()), default=0)
            + STOP_GRACE_S
        )
    )
    exported["REDIS_EMBEDDED"] = "1" if settings.redis_embedded else "0"
    # Kept as the setting, not its value: children would find a relative path relative to something
    # else.
    if os.environ.get("WEBHOOKS_FILE"):
        exported["WEBHOOKS_FILE"] = str(settings.webhooks_file.absolute())
    command = [str(root / ".venv/bin/supervisord"), "-n", "-c", str(root / "supervisord.conf")]
    for tool in ["setpriv", *(["redis-server"] if settings.redis_embedded else [])]:
        if not shutil.which(tool):
            stop(
                f"{tool} is not installed: type `apt-get install "
                f"{'util-linux' if tool == 'setpriv' else tool}`, or set REDIS_URL."
            )
    # A group of its own: Ctrl-C reaches us only, and we pass on one TERM.
    env = {**os.environ, **exported}
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command],
        env=env,
        stdin=subprocess.DEVNULL,
        process_group=0,
    )


def forward_signals(supervisor: "subprocess.Popen[bytes]") -> list[int]:
    """Pass TERM, INT and HUP (the terminal was closed) on as one TERM; return the list of those
    that came.
    """
    stopping: list[int] = []
    started = time.monotonic()

    def forward(number: int, _frame: object) -> None:
        if not stopping:
            say("Stopping: the job in hand is finished first.")
        stopping.append(number)
        # A child that supervisord has only just forked would lose its TERM, and cost its whole
        # stopwaitsecs.
        time.sleep(max(0.0, started + SETTLED_S - time.monotonic()))
        supervisor.terminate()

    for number in STOPS:
        signal.signal(number, forward)
    return stopping


def ready(settings: Settings, supervisor: "subprocess.Popen[bytes]", stopping: list[int]) -> bool:
    """Tell whether ingestion and dashboard answer within the limit; say what does not."""
    started, told = time.monotonic(), False
    while time.monotonic() < started + READY_S and supervisor.poll() is None and not stopping:
        late = [f"{host}:{port}" for _, host, port in ports(settings) if not answers(host, port)]
        if not late:
            return True
        if not told and time.monotonic() > started + SLOW_S:
            told = True
            why = describe_redis(settings)[1] or [f"see the logs in {settings.state_dir}."]
            say(f"Still waiting for {' and '.join(late)}: {why[0]}")
        time.sleep(0.1)
    if supervisor.poll() is None and not stopping:
        say(
            f"Not ready after {READY_S:g} s, and still trying: see the logs in "
            f"{settings.state_dir}."
        )
    return False


def answers(host: str, port: int) -> bool:
    host = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def banner(settings: Settings, made: dict[str, str]) -> None:
    """Say what runs where and how to try it. Secrets are shown once, and to a terminal only."""
    shown = made if sys.stdout.isatty() else {}
    say(
        f"webhookd {VERSION} (python {platform.python_version()}, supervisor "
        f"{version('supervisor')})"
    )
    redis_line, risks = describe_redis(settings)
    say("  " + ("warn" if risks else "ok  "), "redis     ", redis_line)
    for risk in risks:
        say("                  ", risk)
    where = f"http://{settings.host}:{settings.port}/api/webhooks/"
    for name in sorted(settings.sources) if settings.ingest_processes else ():
        say("  ok   ingestion ", where + name, f"  {settings.ingest_processes} processes")
    say("  ok  " if settings.workers else "  warn", "worker    ", f"{settings.workers} processes")
    password = (
        f"password {shown['DASHBOARD_PASSWORD']}  (kept in .env)"
        if "DASHBOARD_PASSWORD" in shown
        else "password in .env"
    )
    say(
        "  ok   dashboard ",
        f"http://{settings.dashboard_host}:{settings.dashboard_port}/dashboard   user "
        f"operator, {password}",
    )
    if "WEBHOOK_SECRET" in shown:
        say("\n  The secret to give to GitHub (kept in .env):", shown["WEBHOOK_SECRET"])
    here = (
        ""
        if settings.state_dir == daemon.root() / "var"
        else f" -s unix://{settings.state_dir}/supervisor.sock"
    )
    # What this start was given by its environment, the next command needs too: else it would reach
    # another instance.
    names = (
        "HOST",
        "PORT",
        "STATE_DIR",
        "WEBHOOKS_FILE",
        *(() if settings.redis_embedded else ("REDIS_URL", "REDIS_URL_FILE")),
    )
    given = {
        name: "…" if name == "REDIS_URL" else shlex.quote(os.environ[name])
        for name in names
        if os.environ.get(name)
    }
    prefix = "".join(f"{name}={value} " for name, value in given.items())
    say(
        f"\n  Try it      {prefix}.venv/bin/python webhookd.py --send           a signed "
        "GitHub push, followed to the end"
    )
    say(
        f"              {prefix}.venv/bin/python webhookd.py --send --fail    one that ends as "
        "a dead letter"
    )
    say(
        f"  Operate     {prefix}.venv/bin/dlqctl --view        .venv/bin/supervisorctl -c "
        f"supervisord.conf{here} status"
    )
    say("  Ctrl-C stops everything; the job in hand is finished first.\n")


def follow(settings: Settings, supervisor: "subprocess.Popen[bytes]") -> None:
    """Say what happens to deliveries, a line each, until supervisord ends; not more than a person
    can read.
    """
    store, last = Client(settings.redis_url, "launch", timeout_s=2.0), b""
    while supervisor.poll() is None:
        try:
            newest, events = figures.events_after(store, last, FOLLOWED + 1)
            for event in events[:FOLLOWED]:
                for line in told(event):
                    say(f"{time.strftime('%H:%M:%S', time.localtime(event.at))}  {line}")
            if len(events) > FOLLOWED:
                say("          …  more than can be shown: see the dashboard")
            last = newest
        except Away:
            pass  # the processes say so in their logs, and the page
        time.sleep(FOLLOW_S)


def told(event: Event) -> list[str]:
    """Return the lines of one event: --> for what came in, <-- for what became of it."""
    words = {"job.complete": "done", "job.reschedule": "retry", "job.bury": "dead"}
    if event.event not in words:
        return []
    facts = event.facts
    named = f"{event.source}  {log.printable(facts.get('event_type', ''))}  {event.id}"
    attempt = f"{facts.get('attempt', 0)}/{facts.get('of', '?')}"
    line = f"<--  {named}  {words[event.event]:5}  {attempt}  {facts.get('run_ms', 0):g} ms"
    if facts.get("error"):
        line += f"  {log.printable(facts['error'])[:120]}"
    if event.event == "job.bury":
        line += f"   .venv/bin/dlqctl --show {event.id}"
    return [f"-->  {named}  accepted", line] if facts.get("attempt") == 1 else [line]


def describe_redis(settings: Settings) -> tuple[str, list[str]]:
    where = f"unix:{settings.state_dir}/redis.sock" if settings.redis_embedded else "REDIS_URL"
    try:
        client = Client(settings.redis_url, "launch")
        client.check_format()
        found, risks = figures.health(client, settings.durability)
    except Away as error:
        return where, [
            f"Redis cannot be used ({error}): start it, or set REDIS_URL to what is right."
        ]
    except NewerData as error:
        return where, [str(error)]
    facts = [found.pop("version"), *(f"{name}={value}" for name, value in found.items())]
    return "  ".join([where, *facts]), risks


if __name__ == "__main__":
    main()
