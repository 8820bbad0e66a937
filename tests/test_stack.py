"""The whole stack as `make run` starts it: post, kill, retry, bury, flush, stop. Real processes
under supervisord.
"""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, SECRET, free_port, signed, until

HANDLER = """
import os, pathlib
from hookq import GiveUp

def handle(delivery):
    if delivery.event_type == "kill":
        mark = pathlib.Path(__file__).with_name("killed")
        if not mark.exists():
            mark.write_text("once")
            os.kill(os.getpid(), 9)
    if delivery.event_type == "give-up":
        raise GiveUp("as asked")
"""


class Stack:
    """`python -m hookq.launch` in a state directory and on ports of its own."""

    def __init__(self, folder, *, sources=True):
        self.folder, self.port, self.dash = Path(folder), free_port(), free_port()
        self.env = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
        self.env.update(
            PORT=str(self.port),
            DASHBOARD_PORT=str(self.dash),
            STATE_DIR=f"{folder}/v",
            NO_COLOR="1",
        )
        self.env.update(WEBHOOK_SECRET=SECRET, DASHBOARD_PASSWORD="a-password")
        (self.folder / "h.py").write_text(HANDLER)
        (self.folder / "w.toml").write_text(
            '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\nhandler = "h.py:handle"\n'
            '[sources.plain]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\n'
        )
        self.env["WEBHOOKS_FILE"] = f"{folder}/w.toml"
        self.out, self.process = self.folder / "out", None

    def launch(self):
        with self.out.open("ab") as out:
            command = [sys.executable, "-m", "hookq.launch"]
            return subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    def start(self):
        self.out.write_text("")
        self.process = self.launch()
        until(
            lambda: (
                "Ctrl-C stops everything" in self.out.read_text() or self.process.poll() is not None
            ),
            120,
            "the banner",
        )
        assert self.process.poll() is None, self.out.read_text()
        return self

    def post(self, body=b"{}", event="push", source="github", **more):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {"Content-Type": "application/json", **signed(body, event=event, **more)}
            connection.request("POST", f"/api/webhooks/{source}", body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def run(self, *command, stdin=""):
        return subprocess.run(
            command, cwd=ROOT, env=self.env, input=stdin, capture_output=True, text=True, timeout=60
        )

    def dlqctl(self, *args, stdin=""):
        return self.run(sys.executable, "dlqctl.py", *args, stdin=stdin)

    def audit(self):
        return json.loads(self.dlqctl("--audit", "--json").stdout)

    def settled(self, **wanted):
        def same():
            found = self.audit()
            return (
                found
                if all(found[k] == v for k, v in {"ready": 0, "leased": 0, **wanted}.items())
                else None
            )

        found = until(same, 60, wanted)
        assert found["gap"] == 0
        return found

    def ctl(self, *args):
        """supervisorctl, as in a bare shell."""
        command = [
            Path(sys.executable).with_name("supervisorctl"),
            "-c",
            "supervisord.conf",
            "-s",
            f"unix://{self.folder}/v/supervisor.sock",
        ]
        return subprocess.run(
            [*command, *args],
            cwd=ROOT,
            env={"PATH": self.env["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def status(self):
        out = self.ctl("status").stdout
        return {
            line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) > 1
        }

    def family(self):
        """Processes with our STATE_DIR in their environment, or on their command line (Redis)."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                texts = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
                if (
                    f"{self.folder}/v".encode() in texts
                    and ") Z" not in (path / "stat").read_text()
                ):
                    found.append(int(path.name))
            except OSError:
                pass
        return found

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(60)
        until(lambda: not self.family(), what="nothing is left behind")


@pytest.fixture
def stack():
    folder = tempfile.mkdtemp(prefix="hs")
    made = Stack(folder)
    yield made
    if made.process and made.process.poll() is None:
        made.process.terminate()
        made.process.wait(60)
    for pid in made.family():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def test_stack_takes_a_delivery_through_every_state(stack):
    stack.start()
    names = {
        "redis",
        "dashboard",
        "webhookd:webhookd_00",
        "webhookd:webhookd_01",
        "worker:worker_00",
        "worker:worker_01",
    }
    assert stack.status() == dict.fromkeys(names, "RUNNING")
    assert stack.post() == 202
    assert stack.post(b"not json", source="plain") == 202
    stack.settled(done=1, dead=1)
    assert "not_json" in stack.dlqctl("--view").stdout
    assert stack.dlqctl("--retry", "0").returncode == 0
    stack.settled(done=1, dead=1)
    assert stack.post(event="kill") == 202  # takes its worker with it, once
    stack.settled(done=2)
    assert stack.post(event="give-up") == 202
    stack.settled(dead=2)
    assert stack.dlqctl("--flush", stdin="y\n").returncode == 0
    stack.settled(dead=0, discarded=2)
    assert stack.dlqctl("--undo").returncode == 0
    before = stack.settled(dead=2, discarded=0)
    stack.stop()
    stack.start()
    assert stack.audit() == before
    assert "Traceback" not in "".join(
        p.read_text(errors="replace") for p in (stack.folder / "v").glob("*.log")
    )


def test_second_start_with_the_same_state_says_so_and_ends(stack):
    stack.start()
    second = stack.launch()
    assert second.wait(60) == 1
    assert re.search(
        r"runs already with STATE_DIR=.*; for a second one set another", stack.out.read_text()
    )
    assert "Traceback" not in stack.out.read_text()


def test_killed_supervisord_leaves_no_process_behind(stack):
    stack.start()
    os.kill(int((stack.folder / "v/supervisord.pid").read_text()), signal.SIGKILL)
    assert stack.process.wait(30) == 1
    assert "supervisord ended by itself" in stack.out.read_text()
    until(lambda: not stack.family(), what="children end with supervisord")


def test_killed_launcher_leaves_no_process_behind(stack):
    stack.start()
    stack.process.kill()
    stack.process.wait()
    until(lambda: not stack.family(), what="supervisord ends with its launcher")


def test_wrong_settings_end_the_start_with_every_mistake(stack):
    stack.env.update(PORT="x", WORKERS="many")
    assert stack.launch().wait(60) == 78
    said = stack.out.read_text()
    assert "PORT is 'x'" in said and "WORKERS is 'many'" in said and "Traceback" not in said


def test_process_with_wrong_settings_after_the_start_does_not_spin(stack):
    stack.start()
    (stack.folder / "w.toml").write_text("[sources.github]\n")
    stack.ctl("restart", "worker:worker_00")
    until(lambda: stack.status()["worker:worker_00"] == "EXITED")
    log = stack.folder / "v/worker_00.log"
    until(lambda: "scheme is missing" in log.read_text())  # supervisord passes it on
    assert log.read_text().count("scheme is missing") == 1


def test_secrets_are_in_no_log_and_no_process_list(stack):
    stack.start()
    body = b'{"marked-body-5c1e": 1}'
    assert stack.post(body) == 202
    stack.settled(done=1)
    listed = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in stack.family())
    logs = (
        "".join(p.read_text(errors="replace") for p in (stack.folder / "v").glob("*.log"))
        + stack.out.read_text()
    )
    for marked in (SECRET, "marked-body-5c1e", "a-password", signed(body)["X-Hub-Signature-256"]):
        assert marked not in logs and marked.encode() not in listed


def test_reload_with_a_broken_handler_is_refused(stack):
    stack.start()
    before = stack.status()
    (stack.folder / "h.py").write_text("def handle(delivery)\n")
    refused = stack.run(sys.executable, "-m", "hookq.launch", "reload")
    assert refused.returncode == 78 and "h.py line 1" in refused.stderr
    assert stack.status() == before and stack.post() == 202
    (stack.folder / "h.py").write_text("def handle(delivery): pass\n")
    told = stack.run(sys.executable, "-m", "hookq.launch", "reload")
    assert told.returncode == 0 and "webhookd:webhookd_00" in told.stdout
    assert stack.post() == 202
    stack.settled(done=2)


def test_reload_of_nothing_says_so(stack):
    done = stack.run(sys.executable, "-m", "hookq.launch", "reload")
    assert done.returncode == 1 and "does not run with STATE_DIR" in done.stderr


def test_two_ports_that_are_one_are_refused(stack):
    stack.env["DASHBOARD_PORT"] = stack.env["PORT"]
    assert stack.launch().wait(60) == 78
    assert "as PORT is" in stack.out.read_text()


def test_marked_secrets_appear_nowhere(stack):
    stack.start()
    body = b'{"marked-body-7a": 1}'
    more = {
        "Authorization": "Bearer marked-authorization",
        "Cookie": "marked-cookie",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }
    headers = {"Content-Type": "application/json", **signed(body, event="give-up"), **more}
    for sent in (headers, headers, {**headers, "X-Hub-Signature-256": "sha256=marked-signature"}):
        connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)
        connection.request("POST", "/api/webhooks/github", body, sent)
        connection.getresponse().read()
        connection.close()
    found = stack.settled(dead=1)
    assert found["accepted"] == 1
    id = stack.dlqctl("--view").stdout.split("\t")[1]
    login = {"Authorization": "Basic " + base64.b64encode(b"operator:a-password").decode()}
    pages = []
    for path in ("/dashboard", "/dashboard/dead", f"/dashboard/deliveries/{id}", "/metrics"):
        connection = http.client.HTTPConnection("127.0.0.1", stack.dash, timeout=10)
        connection.request("GET", path, headers=login)
        pages.append(connection.getresponse().read().decode())
        connection.close()

    def logs_of():
        logs = "".join(p.read_text(errors="replace") for p in (stack.folder / "v").glob("*.log"))
        # the trace leads from the sender's to ours; supervisord passes on what a process says
        traced = '"event": "%s".*"traceparent": "00-a{32}-b{16}-01"'
        told = all(re.search(traced % name, logs) for name in ("delivery.duplicate", "job.bury"))
        return logs + stack.out.read_text() if told else ""

    logs = until(logs_of, what="both lines are in the logs")
    listed = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in stack.family()).decode(
        errors="replace"
    )
    signature = headers["X-Hub-Signature-256"][7:]
    for marked in (
        SECRET,
        signature,
        "marked-authorization",
        "marked-cookie",
        "marked-signature",
        "a-password",
    ):
        assert marked not in logs + listed + "".join(pages) + stack.dlqctl("--show", id).stdout, (
            marked
        )
    assert "marked-body-7a" not in logs + listed + pages[0] + pages[1] + pages[3]
