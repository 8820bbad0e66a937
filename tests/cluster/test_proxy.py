"""ops/nginx.conf as it stands, but for ports, certificate and name, in the distribution's nginx."""

import http.client
import json
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing

import pytest
from conftest import ROOT, free_port, signed, until
from many import ALL, hosts, nodes, settled
from test_access import certificates  # noqa: F401
from test_dashboard import LOGIN

WHERE = {"TRUSTED_PROXIES": "127.0.0.1", "DASHBOARD_NAMES": "hooks.example.com"}


class Proxy:
    """nginx before a host; `connection()` leads to it from 127.0.0.2, which it does not trust."""

    def __init__(self, folder, certificates, host):  # noqa: F811
        self.port, self.trust = (
            free_port(),
            ssl.create_default_context(cafile=certificates / "ca.crt"),
        )
        text = (ROOT / "ops/nginx.conf").read_text()
        for old, new in (
            ("127.0.0.1:7000", f"127.0.0.1:{host.port}"),
            ("127.0.0.1:7001", f"127.0.0.1:{host.env['DASHBOARD_PORT']}"),
            ("listen 443", f"listen 127.0.0.1:{self.port}"),
            ("/etc/ssl/hooks.example.com.crt", f"{certificates}/server.crt"),
            ("/etc/ssl/private/hooks.example.com.key", f"{certificates}/server.key"),
        ):
            assert old in text
            text = text.replace(old, new)
        temps = "".join(
            f"{name}_temp_path {folder}/{name}; "
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; daemon off; user root; events {{}} http {{ access_log off; {temps}\n{text}}}\n"
        )
        command = ["nginx", "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"]
        assert subprocess.run([*command, "-t"], capture_output=True, check=False).returncode == 0
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def connection(self):
        return http.client.HTTPSConnection(
            "localhost", self.port, timeout=20, context=self.trust, source_address=("127.0.0.2", 0)
        )

    def post(self, connection, n, **more):
        body = json.dumps({"n": n}).encode()
        connection.request(
            "POST",
            "/api/webhooks/github",
            body,
            {**signed(body, delivery_id=f"proxied-{n}"), **more},
        )
        with closing(connection.getresponse()) as answer:
            answer.read()
            return answer.status


@pytest.fixture
def stack(tmp_path, certificates):  # noqa: F811
    if not shutil.which("nginx"):
        pytest.skip("nginx is not installed: `sh hookq/setup.sh hosts` does that")
    with nodes() as start, hosts() as machine:
        server = start("--appendonly", "yes", "--appendfsync", "always")
        host = machine(f"redis://127.0.0.1:{server.port}", names=ALL, **WHERE)
        proxy = Proxy(tmp_path, certificates, host)
        until(host.ready, 20)
        yield host, proxy
        proxy.process.terminate()
        proxy.process.wait(20)


def test_client_behind_the_proxy_is_named_by_its_header(stack):
    host, proxy = stack
    with closing(proxy.connection()) as connection:
        until(lambda: proxy.post(connection, 0) in (200, 202), 20)
        assert [proxy.post(connection, n) for n in range(1, 50)] == [202] * 49
        spoofed = {"X-Hub-Signature-256": "sha256=" + 64 * "0", "X-Forwarded-For": "192.0.2.66"}
        assert proxy.post(connection, 50, **spoofed) == 401
        connection.request("POST", "/api/webhooks/nosuch", b"{}", {"X-Forwarded-For": "192.0.2.66"})
        assert connection.getresponse().status == 404
        assert [line["client"] for line in host.programs[0].saw("request.reject")] == [
            "127.0.0.2"
        ] * 2
    lost, twice, _ = settled(host.env["REDIS_URL"], [host], set(range(50)))
    assert not lost and not twice


def test_restart_behind_the_proxy_fails_no_delivery(stack):
    host, proxy = stack
    codes, ended = Counter(), threading.Event()

    def client(first):
        with closing(proxy.connection()) as connection:
            for n in range(first, first + 100_000):
                if ended.is_set():
                    return
                codes[proxy.post(connection, n)] += 1

    threads = [threading.Thread(target=client, args=(100_000 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for round in range(1, 6):
        before = sum(codes.values())
        until(lambda before=before: sum(codes.values()) > before + 100, 20)
        host.programs[0].process.send_signal(signal.SIGHUP)
        until(lambda round=round: len(host.programs[0].events("process.start")) > round, 20)
    ended.set()
    for thread in threads:
        thread.join(30)
    assert set(codes) <= {200, 202}, codes


def test_operator_reads_and_acts_through_the_proxy(stack):
    host, proxy = stack
    own = {**LOGIN, "Host": "hooks.example.com"}
    with closing(proxy.connection()) as connection:

        def page(method, path, body=None, **more):
            connection.request(method, path, body, {**own, **more})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        until(lambda: page("GET", "/dashboard")[0] == 200, 20)
        assert page("GET", "/static/app.css")[0] == 200 and page("GET", "/metrics")[0] == 404
        token = re.search(
            r'name="token" value="([^"]+)"',
            page("GET", "/dashboard")[1] + page("GET", "/dashboard/dead")[1],
        )[1]
        form = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": "https://hooks.example.com",
            "Sec-Fetch-Site": "same-origin",
        }
        assert page("POST", "/dashboard/retry", f"token={token}&id=nosuch", **form)[0] == 303
        assert page("GET", "/dashboard", Authorization="Basic b3BlcmF0b3I6d3Jvbmc=")[0] == 401
    assert host.programs[2].saw("login.reject")[0]["client"] == "127.0.0.2"


def test_stopping_process_tells_its_balancer_first(stack):
    host, _ = stack
    program, codes, asked, began = host.programs[0], Counter(), [], time.monotonic()

    def ready():
        asked.append((time.monotonic() - began, host.ready()))
        return asked[-1][1]

    def post(n):
        body = json.dumps({"n": n}).encode()
        with closing(host.connection(10)) as connection:
            connection.request("POST", "/api/webhooks/github", body, signed(body))
            codes[connection.getresponse().status] += 1

    until(lambda: ready() and asked[-1][0] > 11, 20, "a balancer has asked for a while")
    program.process.send_signal(signal.SIGTERM)
    for n in range(
        10_000
    ):  # as long as it says that it is ready, and for the second that a balancer takes to ask again
        if n % 10 == 0 and not ready():
            break
        post(n)
    for n in range(20):
        post(n)
    assert set(codes) == {202} and not asked[-1][1] and program.process.poll() is None
    assert program.process.wait(15) == 0
