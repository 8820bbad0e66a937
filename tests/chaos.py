"""Everything at once: load on the whole stack while its processes are killed, frozen, restarted and
reloaded, Redis is killed and made full, and replies are swallowed. Prints one table; exits 1 when
anything acknowledged is lost.

    make chaos                     60 s
    CHAOS_S=600 make chaos         longer; SEED=7 chooses what happens when

All three kinds of handler: some in Python fail twice, hang past their time limit once, or kill
their worker once; one kills it every time. A target answers 503, or nothing, at first; a command
asks to come again. Loopback only; it ends by itself, and ends whatever it has started.
"""

import http.client
import http.server
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from conftest import ROOT, Store, free_port, signed
from test_faults import Proxy
from test_stack import Stack

from hookq.operate.supervisord import NoSupervisor, programs
from hookq.store.connection import Away

HANDLER = """
import json, os, pathlib, signal, time
here = str(pathlib.Path(__file__).parent)

def note(name, text):
    file = os.open(f"{here}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (text + "\\n").encode())
    os.close(file)

def first(what, n):
    try:
        os.close(os.open(f"{here}/{what}.{n}", os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False

def handle(delivery):
    n = json.loads(delivery.body)["n"]
    time.sleep(0.006)  # longer than a worker waits before it settles: so a kill costs one job a second run, not several
    if n == 0:
        note("poison", "start")
        os.kill(os.getpid(), signal.SIGKILL)
    if n % 601 == 17:
        if first("kill", n):
            note("killed", f"{n} {time.time()}")
            os.kill(os.getpid(), signal.SIGKILL)
        if first("back", n):
            note("again", f"{n} {time.time()}")
    if n % 11 == 7 and (first("fail1", n) or first("fail2", n)):
        raise ValueError("twice")
    if n % 997 == 13 and first("hang", n):
        time.sleep(30)
    note("ran", str(n))
"""
SCRIPT = """#!/bin/sh
n=$(sed 's/.*"n": \\([0-9]*\\).*/\\1/')
[ $((n % 7)) = 3 ] && mkdir "again.$n" 2>/dev/null && exit 75
echo "$n" >>ran
"""
COMMON = """scheme = "github"
secrets = ["env:WEBHOOK_SECRET"]
max_attempts = 30
timeout_s = 2
retry_base_s = 0.1
retry_max_s = 1
"""
BESIDE = 4  # at once, of a target and of a command


def sources(target):
    kinds = {
        "github": '"h.py:handle"',
        "passed": f'"http://127.0.0.1:{target}/"',
        "started": '["./run.sh"]',
    }
    more = f"allow_private = true\nconcurrency = {BESIDE}\n"
    return "".join(
        f"[sources.{name}]\n{COMMON}handler = {handler}\n{more}" for name, handler in kinds.items()
    )


class Target(http.server.BaseHTTPRequestHandler):
    """What deliveries are passed on to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        n = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["n"]
        first, self.server.asked[n] = n not in self.server.asked, True
        if first and n % 7 == 4:
            self.close_connection = True
            return
        with (self.server.folder / "ran").open("a") as file:
            file.write("" if first and n % 7 == 3 else f"{n}\n")
        self.send_response(503 if first and n % 7 == 3 else 204)
        self.send_header("Retry-After", "0")
        if first and n % 7 == 3:  # without it the answer would only end with the connection
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


KINDS = ("github", "passed", "started", "github", "github")  # of a delivery, by its number
CLIENTS, PAUSE_S = 5, 0.02


class Chaos:
    """One run: the stack, an ingestion process and a worker that reach Redis through a proxy,
    clients, and the dice.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice, self.stack = random.Random(seed), Stack(folder)
        (folder / "h.py").write_text(HANDLER)
        (folder / "run.sh").write_text(SCRIPT)
        (folder / "run.sh").chmod(0o755)
        self.target = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Target)
        self.target.folder, self.target.asked = folder, {}
        self.target.handle_error = lambda *_: (
            None
        )  # a worker that is killed closes its connection in the middle
        threading.Thread(target=self.target.serve_forever, args=(0.05,), daemon=True).start()
        (folder / "w.toml").write_text(sources(self.target.server_port))
        self.stack.start()
        self.redis = Store(f"unix://{folder}/v/redis.sock", "chaos", timeout_s=2)
        self.proxy = Proxy(f"{folder}/p.sock", None)
        self.proxy.target = f"{folder}/v/redis.sock"
        threading.Thread(target=self.proxy.serve_forever, args=(0.05,), daemon=True).start()
        self.port2 = free_port()
        self.beside = [
            self._beside(name, PORT=str(self.port2)) for name in ("webhookd.py", "worker.py")
        ]
        self.ended = threading.Event()
        self.lock, self.number = threading.Lock(), 0
        self.acked: set[int] = set()
        self.codes: Counter[str] = Counter()
        self.did: Counter[str] = Counter()
        self.samples, self.gaps = 0, 0

    def _beside(self, name, **more):
        env = {**self.stack.env, "REDIS_URL": f"unix://{self.stack.folder}/p.sock", **more}
        with (self.stack.folder / f"v/beside-{name}.log").open("wb") as out:
            return subprocess.Popen(
                [sys.executable, str(ROOT / name)],
                env=env,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )

    def deliver(self, n, port):
        """Post until it is acknowledged: whoever gets no answer, or a 503, comes again with the
        same id.
        """
        body = json.dumps({"n": n, "pad": "x" * 1000}).encode()
        headers = {"Content-Type": "application/json", **signed(body, delivery_id=f"chaos-{n}")}
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("POST", f"/api/webhooks/{KINDS[n % 5]}", body, headers)
                code = str(connection.getresponse().status)
            except (OSError, http.client.HTTPException) as error:
                code = type(error).__name__
            finally:
                connection.close()
            with self.lock:
                self.codes[code] += 1
                if code in ("200", "202"):
                    self.acked.add(n)
                    return
            time.sleep(0.1)

    def client(self, port):
        while not self.ended.wait(PAUSE_S):
            with self.lock:
                self.number += 1
                n = self.number
            self.deliver(n, port)

    def watch(self):
        while not self.ended.wait(0.1):
            with suppress(Away):
                self.samples += 1
                self.gaps += self.redis.audit().gap != 0

    def strike(self):
        """Do one thing, as the dice say, to one process or to all."""
        names = {p.name: p.pid for p in programs(self.stack.folder / "v") if p.state == "RUNNING"}
        kind = self.dice.choice(["worker", "worker", "webhookd", "redis", "dashboard"])
        pids = [pid for name, pid in sorted(names.items()) if name.startswith(kind)]
        what = self.dice.choice(
            ["kill"] * 6 + ["freeze", "freeze", "HUP", "restart", "full", "swallow", "swallow"]
        )
        if not pids:
            return
        pid, name = self.dice.choice(pids), kind
        if what == "kill":
            os.kill(pid, signal.SIGKILL)
        elif what == "freeze":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.dice.uniform(0.3, 2.5))
            os.kill(pid, signal.SIGCONT)
        elif what == "HUP":
            name = "all"
            for other in [pid for name, pid in names.items() if name != "redis"]:
                os.kill(other, signal.SIGHUP)
        elif what == "restart":
            name = self.dice.choice(
                [name for name in names if name.startswith(("webhookd", "worker"))]
            )
            self.stack.ctl("restart", name)
            name = name.split(":")[0]
        elif what == "full":
            name = "redis"
            self.redis.redis.config_set("maxmemory", "1mb")
            time.sleep(self.dice.uniform(0.5, 2))
            self.redis.redis.config_set("maxmemory", "1gb")
        else:
            name, self.proxy.left = "reply", 3
        self.did[f"{what} {name}"] += 1

    def run(self, seconds):
        self.deliver(0, self.stack.port)
        threads = [
            threading.Thread(target=self.client, args=(self.port2 if n == 0 else self.stack.port,))
            for n in range(CLIENTS)
        ]
        threads.append(threading.Thread(target=self.watch))
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.dice.uniform(0.2, 1.0))
            with suppress(OSError, NoSupervisor, Away, Exception):
                self.strike()
        with suppress(Exception):
            self.redis.redis.config_set("maxmemory", "1gb")
        self.ended.set()
        for thread in threads:
            thread.join(60)
        self.audit = self._settled(60)

    def _settled(self, limit_s):
        """Wait until nothing is owed, as long as it becomes less: `limit_s` without progress is the
        end.
        """
        end, least = time.monotonic() + limit_s, float("inf")
        while time.monotonic() < end:
            with suppress(ValueError, subprocess.SubprocessError):
                found = self.stack.audit()
                owed = sum(found[name] for name in ("ready", "leased", "retry", "spooled"))
                if not owed:
                    return found
                if owed < least:
                    least, end = owed, time.monotonic() + limit_s
            time.sleep(0.5)
        return self.stack.audit()

    def close(self):
        for process in self.beside:
            process.terminate()
            process.wait(60)
        self.proxy.shutdown()
        self.proxy.server_close()
        self.redis.close()
        self.stack.stop()
        self.target.shutdown()
        self.target.server_close()

    def lines(self, name):
        path = self.stack.folder / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def verdict(self):
        """Return (rows of the table, what does not hold)."""
        ran = [
            int(line) for line in self.lines("ran")
        ]  # a number in each: a command never sees half a body
        killed = {line.split()[0]: float(line.split()[1]) for line in self.lines("killed")}
        again = sorted(
            float(at) - killed[n]
            for n, at in (line.split() for line in self.lines("again"))
            if n in killed
        )
        taken = sorted(filter(None, (self._taken_over(at) for at in killed.values())))
        lost, twice = self.acked - {0} - set(ran), len(ran) - len(set(ran))
        strikes = sum(n for what, n in self.did.items() if what.startswith("kill"))
        reasons = Counter(self.redis_reasons())
        rows = {
            "acknowledged": len(self.acked),
            "lost": len(lost),
            "run twice": f"{twice} (kills of our own and by handlers: {strikes + len(killed) + 3})",
            "dead by reason": ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "none",
            "the job that kills every worker was started": len(self.lines("poison")),
            "from a kill to the takeover": spread(taken),
            "from a kill to the second run, behind what waits": spread(again),
            "answers": ", ".join(f"{n} {code}" for code, n in self.codes.most_common()),
            "what happened": ", ".join(f"{n} {what}" for what, n in sorted(self.did.items())),
            "replies swallowed": self.proxy.lost,
            "ledger gap other than 0": f"{self.gaps} of {self.samples} samples",
            "at the end": json.dumps(self.audit),
        }
        wrong = [f"lost: {sorted(lost)[:5]}"] if lost else []
        wrong += ["the ledger's gap was not 0"] if self.gaps or self.audit["gap"] else []
        wrong += (
            ["not settled"]
            if self.audit["ready"]
            or self.audit["leased"]
            or self.audit["retry"]
            or self.audit["spooled"]
            else []
        )
        wrong += (
            ["a job too many or too few"]
            if not len(self.acked) <= self.audit["accepted"] <= self.number + 1
            else []
        )
        wrong += [f"dead letters: {reasons}"] if reasons != {"killed_worker": 1} else []
        # Each worker that ends, or lies frozen, may have one job in hand and some beside that are
        # not settled.
        most = (strikes + len(killed) + 3 + self.did["freeze worker"]) * (1 + 2 * BESIDE)
        wrong += [f"run twice: {twice}"] if twice > most else []
        return rows, wrong

    def _taken_over(self, at):
        """Return the seconds from `at` to the next takeover of a job that was in hand, by the
        workers' logs.
        """
        logs = [
            path.read_text(errors="replace")
            for path in (self.stack.folder / "v").glob("*worker*.log*")
        ]
        lines = [
            line
            for text in logs
            for line in text.splitlines()
            if '"job.reclaim"' in line and '"deaths": 1' in line
        ]
        later = [found - at for found in (json.loads(line)["at"] for line in lines) if found > at]
        return min(later, default=None)

    def redis_reasons(self):
        return [
            row["reason"]
            for row in json.loads(self.stack.dlqctl("--view", "--limit", "0", "--json").stdout)
        ]


def spread(times):
    if not times:
        return "none"
    return f"p50 {statistics.median(times):.1f} s, p99 {times[int(len(times) * 0.99)]:.1f} s (n={len(times)})"


def chaos(seconds, seed):
    """Run, and return (rows, what does not hold)."""
    folder = Path(tempfile.mkdtemp(prefix="hc"))
    made = Chaos(folder, seed)
    try:
        made.run(seconds)
        return made.verdict()
    finally:
        made.close()
        if not os.environ.get("CHAOS_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


def main():
    seconds, seed = float(os.environ.get("CHAOS_S", "60")), int(os.environ.get("SEED", "7"))
    rows, wrong = chaos(seconds, seed)
    print(f"| chaos, {seconds:g} s, seed {seed} | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
