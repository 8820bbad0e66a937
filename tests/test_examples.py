"""The examples run as their pages say."""

import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys

import pytest
from conftest import ROOT, SECRET, delivery, free_port, until
from test_worker import settled

PUSH = b'{"ref": "refs/heads/main", "after": "0123456789abcdef"}'


@pytest.fixture
def example(running, tmp_path):
    """example(name) copies an example and starts a worker on it; returns its folder."""

    def start(name, **replaced):
        folder = tmp_path / name
        shutil.copytree(ROOT / "examples" / name, folder)
        text = (folder / "webhooks.toml").read_text()
        for old, new in replaced.items():
            text = text.replace(old.removeprefix("p"), new)
        (tmp_path / "webhooks.toml").write_text("")
        (folder / "webhooks.toml").write_text(text)
        running("worker.py", WEBHOOKS_FILE=folder / "webhooks.toml")
        return folder

    return start


def listening(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def pushed(store, count=1, body=PUSH, event="push"):
    made = [
        delivery(body=body)._replace(event_type=event, head=b"X-GitHub-Event: push\r\n")
        for _ in range(count)
    ]
    store.accept([(job, 60) for job in made])
    return made


def test_python_example_notes_each_push_once(store, example):
    folder = example("python")
    made = pushed(store, 3) + pushed(store, body=b"{}")
    settled(store, done=3, dead=1)
    with sqlite3.connect(folder / "pushes.db") as db:
        rows = db.execute(
            "SELECT delivery, ref, commit_id FROM pushes ORDER BY delivery"
        ).fetchall()
    db.close()
    assert rows == [(job.id, "refs/heads/main", "0123456789abcdef") for job in made[:3]]


def test_command_example_deploys_the_branch_that_was_pushed(store, example):
    folder = example("command")
    (first,) = pushed(store)
    pushed(store, body=PUSH.replace(b"main", b"other"))
    pushed(store, event="ping")
    settled(store, done=3)
    assert (folder / "deployed").read_text() == f"{first.delivery_id}\n"


def test_forward_example_is_passed_what_it_verifies(store, example, tmp_path):
    port = free_port()
    command = [sys.executable, ROOT / "examples/forward/service.py", str(port)]
    service = subprocess.Popen(
        command,
        env={"WEBHOOK_SECRET": SECRET, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: listening(port), what="the service is there")
        example("forward", p7100=str(port))
        pushed(store, 2)
        settled(store, done=2)
        told = [service.stdout.readline() for _ in range(2)]
        assert told == [f"push {hashlib.sha256(PUSH).hexdigest()}\n"] * 2
    finally:
        service.send_signal(signal.SIGKILL)
        service.stdout.close()
        service.wait()
    assert until(lambda: store.audit().gap == 0)
