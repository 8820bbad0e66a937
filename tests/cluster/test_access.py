"""How Redis is reached: TLS with certificates made on the spot, and a user that may do no more than
what is needed.
"""

import re
import subprocess

import pytest
from conftest import ROOT, free_port, until
from many import ALL, PASSWORD, Load, hosts, nodes, settled

HANDLER = """
import json, os, pathlib
from hookq import GiveUp, Retry

def handle(delivery):
    n = json.loads(delivery.body)["n"]
    if n == 1:
        raise GiveUp("as asked")
    if n == 2 and delivery.attempt == 1:
        raise Retry(after_s=0.1)
    if n == 3 and delivery.attempt == 1:
        os.kill(os.getpid(), 9)
"""


def openssl(folder, *words):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with ca, other-ca, server (of localhost), elsewhere (of another name) and client,
    each .crt and .key.
    """
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other-ca"):
        openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")  # fmt: skip
    for name, subject in (
        ("server", "DNS:localhost,IP:127.0.0.1"),
        ("elsewhere", "DNS:elsewhere.test"),
        ("client", "DNS:client.test"),
    ):
        openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        (folder / "ext").write_text(f"subjectAltName={subject}\n")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", "ext", "-out", f"{name}.crt")  # fmt: skip
    return folder


def over_tls(start, folder, name="server", *options):
    """Start a server that speaks TLS only, and wants a certificate of its clients."""
    port = free_port()
    files = (
        "--tls-cert-file",
        f"{folder}/{name}.crt",
        "--tls-key-file",
        f"{folder}/{name}.key",
        "--tls-ca-cert-file",
        f"{folder}/ca.crt",
    )
    return start(
        "--port",
        "0",
        "--tls-port",
        str(port),
        *files,
        "--requirepass",
        PASSWORD,
        *options,
        port=port,
    )


def query(folder, ca="ca", client="client"):
    own = f"&ssl_certfile={folder}/{client}.crt&ssl_keyfile={folder}/{client}.key" if client else ""
    return f"?ssl_ca_certs={folder}/{ca}.crt{own}"


def test_deliveries_are_taken_and_run_over_tls(certificates):
    with nodes() as start, hosts() as machine:
        server = over_tls(start, certificates)
        one = machine(f"rediss://:{PASSWORD}@localhost:{server.port}/0{query(certificates)}")
        one.programs[0].saw("redis.up")
        with Load([one]) as load:
            load.more()
        lost, twice, ledger = settled(one.env["REDIS_URL"], [one], load.acked)
    assert not lost and not twice and ledger.done == len(load.acked)


@pytest.mark.parametrize(
    ("name", "ca", "client", "why"),
    [
        ("server", "other-ca", "client", "certificate verify failed"),
        ("elsewhere", "ca", "client", "Hostname mismatch"),
        (
            "server",
            "ca",
            None,
            "ConnectionError",
        ),  # told after the handshake: where it is noticed is chance
    ],
    ids=["a CA we do not trust", "a certificate of another name", "no certificate of ours"],
)
def test_wrong_certificate_is_reported_and_the_spool_takes_over(
    certificates, name, ca, client, why
):
    with nodes() as start, hosts() as machine:
        server = over_tls(start, certificates, name)
        one = machine(
            f"rediss://:{PASSWORD}@localhost:{server.port}/0{query(certificates, ca, client)}"
        )
        assert why in until(lambda: one.programs[0].events("redis.unreachable"), 20)[0]["why"]
        with Load([one]) as load:
            load.more(20)
        assert (
            one.spooled() == len(load.acked)
            and set(load.codes) == {"202"}
            and not one.programs[0].events("redis.up")
        )
        assert PASSWORD not in "".join(program.text for program in one.programs)


def test_sentinels_and_the_primary_they_name_are_reached_over_tls(certificates):
    with nodes() as start, hosts() as machine:
        server = over_tls(start, certificates)
        watch = f"sentinel monitor jobs 127.0.0.1 {server.port} 1\nsentinel auth-pass jobs {PASSWORD}\ntls-replication yes\n"
        port = free_port()
        files = (f"{name} {certificates}/{file}" for name, file in (
            ("tls-cert-file", "server.crt"), ("tls-key-file", "server.key"), ("tls-ca-cert-file", "ca.crt"),
        ))  # fmt: skip
        start(
            "--sentinel",
            "--port",
            "0",
            "--tls-port",
            str(port),
            port=port,
            config="\n".join([*files, watch]),
        )
        one = machine(f"rediss+sentinel://:{PASSWORD}@localhost:{port}/jobs{query(certificates)}")
        one.programs[0].saw("redis.up", 20)
        with Load([one]) as load:
            load.more(50)
        lost, _, ledger = settled(one.env["REDIS_URL"], [one], load.acked)
    assert not lost and ledger.done == len(load.acked)


@pytest.fixture
def limited():
    """A server with the user of ops/users.acl, and its URL."""
    with nodes() as start:
        server = start()
        until(lambda: server.says("ping") == "PONG")
        _, name, *rules = (ROOT / "ops/users.acl").read_text().split()
        assert (
            server.says(
                "acl", "setuser", name, *(rule.replace("CHANGE-ME", PASSWORD) for rule in rules)
            )
            == "OK"
        )
        server.says(
            "acl", "setuser", name, "+client|setinfo", "+waitaof"
        )  # from 7.2 on, as docs/scaling.md says
        yield server, f"redis://{name}:{PASSWORD}@127.0.0.1:{server.port}"


def test_user_of_ops_may_do_all_that_is_needed(limited):
    server, url = limited
    with hosts() as machine:
        one = machine(url, handler=HANDLER, names=ALL, DURABILITY="fsync")
        with Load([one], clients=1) as load:
            load.more(30)
        until(
            lambda: one.programs[1].process.poll() is not None,
            20,
            "the third job has killed its worker",
        )
        one.programs[1] = one.run("worker.py")
        one.programs[1].saw("job.reclaim", 20)
        one.programs[2].saw("process.start")

        def dlqctl(*words):
            program = one.run("dlqctl.py", *words)
            assert program.process.wait(30) == 0, program.text
            return program.text

        until(lambda: "1 of 1 dead letter" in dlqctl("--view"), 20)
        id = re.search(r"\n0\s+(\w+)", dlqctl("--view"))[1]
        for words in (
            ["--view", "--by-cause"],
            ["--view", "--error", "asked"],
            ["--show", id],
            ["--show", id[:9]],
            ["--retry", "0"],
        ):
            dlqctl(*words)
        until(lambda: "1 of 1 dead letter" in dlqctl("--view"), 20)
        for words in (
            ["--flush", "--yes"],
            ["--undo"],
            ["--export", "-"],
            ["--retry", "all", "--yes"],
            ["--audit"],
        ):
            dlqctl(*words)
        until(lambda: "1 of 1 dead letter" in dlqctl("--view"), 20)
        dlqctl("--audit")
        for path in ("/dashboard", "/dashboard/dead", f"/dashboard/deliveries/{id}", "/metrics"):
            assert one.page(path)[0] == 200
    assert server.says("acl", "log") == ""


def test_user_of_ops_may_do_nothing_that_nothing_uses():
    allowed = set(re.findall(r"\+(\S+)", (ROOT / "ops/users.acl").read_text()))
    rooms = [*(ROOT / "hookq/store").glob("*.py"), ROOT / "hookq/ingest/intake.py"]
    code = "".join(path.read_text() for path in rooms)
    scripts = "".join(path.read_text() for path in (ROOT / "hookq/store/lua").glob("*.lua"))
    used = {
        "|".join(words).lower().rstrip("|")
        for words in re.findall(r"p?call\('(\w+)'(?:, '(CREATE|DELCONSUMER|GROUPS)')?", scripts)
    }
    words = re.findall(r"(?:redis|pipe|node)\.([a-z_]+)\(", code)
    methods = {
        "client_list": "client|list",
        "config_get": "config|get",
        "xgroup_create": "xgroup|create",
        "xinfo_groups": "xinfo|groups",
    }
    methods |= {
        "xinfo_consumers": "xinfo|consumers",
        "xpending_range": "xpending",
        "scan_iter": "scan",
        "zscan_iter": "zscan",
    }
    used |= {methods.get(word, word) for word in words} | {
        word.lower() for word in re.findall(r'"([A-Z]{3,10})"', code)
    }
    used |= {
        "cluster|slots",
        "client|setname",
        "client|setinfo",
        "multi",
        "exec",
        "unwatch",
    }  # redis-py's own, and the last of connection.py
    assert allowed <= used, allowed - used
