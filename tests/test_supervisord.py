"""supervisord.conf: what it must say, and that each line that is not a default has its reason above
it.
"""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "supervisord.conf").read_text()
CONF = configparser.RawConfigParser(inline_comment_prefixes=(" ;",))
CONF.read_string(TEXT)
PROGRAMS = [name for name in CONF.sections() if name.startswith(("program:", "fcgi-program:"))]


def test_programs_are_the_four_of_the_design():
    assert sorted(PROGRAMS) == [
        "fcgi-program:webhookd",
        "program:dashboard",
        "program:redis",
        "program:worker",
    ]
    # Within a [group:x] supervisor 4.3.0 hands a pipe over in the place of the socket.
    assert not [name for name in CONF.sections() if name.startswith("group:")]


def test_every_program_ends_with_supervisord():
    for name in PROGRAMS:
        assert "setpriv --pdeathsig TERM" in CONF[name]["command"]


def test_no_program_goes_fatal_or_spins_on_wrong_settings():
    for name in PROGRAMS:
        assert CONF[name]["startsecs"] == "0"
        if name != "program:redis":
            assert (CONF[name]["autorestart"], CONF[name]["exitcodes"]) == ("unexpected", "78")


def test_python_programs_survive_a_hup_before_their_handler():
    for name in PROGRAMS:
        assert name == "program:redis" or """trap "" HUP; exec """ in CONF[name]["command"]


def test_supervisorctl_section_works_in_a_bare_shell():
    assert "%(ENV_" not in "".join(CONF["supervisorctl"].values())


def test_no_secret_goes_through_the_conf():
    assert "environment" not in {key for section in CONF.sections() for key in CONF[section]}


def test_control_socket_is_unix_only_and_private():
    assert "inet_http_server" not in CONF
    assert CONF["unix_http_server"]["chmod"] == "0700"


def test_every_unusual_line_has_its_reason():
    # The first line of a key in the file has a comment above it, or in the list at the head of the
    # programs.
    plain = {
        "file",
        "command",
        "process_name",
        "numprocs",
        "priority",
        "stopwaitsecs",
        "logfile",
        "pidfile",
        "childlogdir",
    }
    plain |= {"username", "password", "supervisor.rpcinterface_factory", "stdout_logfile"}
    plain |= {
        key
        for section in CONF.sections()
        for key in CONF[section]
        if key.endswith(("_maxbytes", "_backups"))
    }
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        key = line.partition("=")[0]
        if "=" in line and not line.startswith(";") and key not in plain:
            told = (
                lines[number - 1].startswith(";")
                or f"{key}=" in TEXT.split("[program:redis]")[0]
                or key in TEXT.split("[program:redis]")[0]
            )
            assert told, line


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
