"""supervisord.conf: its commands run, and each line that is not a default has its reason above it.
What the whole of it does, test_stack shows.
"""

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, until

from hookq.settings import EX_SETTINGS

TEXT = (ROOT / "supervisord.conf").read_text()
CONF = configparser.RawConfigParser(inline_comment_prefixes=(" ;",))
CONF.read_string(TEXT)
PROGRAMS = [name for name in CONF.sections() if name.startswith(("program:", "fcgi-program:"))]


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "program:redis"])
def test_hup_before_its_handler_kills_no_program(name, tmp_path):
    command = shlex.split(CONF[name]["command"].replace("%(here)s", str(ROOT)))
    wrong = {"PATH": os.environ["PATH"], "STATE_DIR": str(tmp_path), "WORKERS": "many"}
    program = subprocess.Popen(command, env=wrong, stderr=subprocess.PIPE)
    status = Path(f"/proc/{program.pid}/status")
    until(lambda: int(re.search(r"SigIgn:\s+(\w+)", status.read_text())[1], 16) & 1)
    program.send_signal(signal.SIGHUP)
    assert b"WORKERS is 'many'" in program.communicate(timeout=60)[1]
    assert program.returncode == EX_SETTINGS


def test_unusual_line_has_its_reason_above_it():
    head = TEXT.split("; What every program")[1].split("[")[0]
    common = set(
        re.findall(
            r"\b(\w+)(?:=\w+,?)?\s", "\n".join(re.findall(r"^;   (\S.*?(?:  |\n))", head, re.M))
        )
    )
    usual = {"file", "command", "process_name", "numprocs", "priority", "username", "password"}
    usual |= {
        "pidfile",
        "childlogdir",
        "logfile",
        "stdout_logfile",
        "supervisor.rpcinterface_factory",
    }
    lines = TEXT.splitlines()
    for above, line in zip(lines, lines[1:], strict=False):
        key = line.partition("=")[0]
        if line[:1] not in (";", "[", "") and not key.endswith(("_maxbytes", "_backups")):
            assert above.startswith(";") or key in usual | common, line


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_unit_of_systemd_is_as_systemd_wants_it(tmp_path):
    unit = tmp_path / "webhookd.service"
    text = (ROOT / "ops/webhookd.service").read_text().replace("/opt/webhookd", str(ROOT))
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    stop_s = sum(
        int(CONF[name]["stopwaitsecs"]) for name in PROGRAMS if CONF[name]["stopwaitsecs"].isdigit()
    )
    assert (
        int(re.search(r"TimeoutStopSec=(\d+)", text)[1]) >= stop_s + 40
    )  # one group after the other, and a worker its 30 s and 10
