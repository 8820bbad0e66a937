"""Hostile HTTP: the corpus fed whole, byte by byte, and glued to a good request; against h11;
mutated. Never two requests out of one, never one that h11 refuses, and always an answer.

HOSTILE=100000 makes that many mutated requests (in `make test` 20,000).
"""

import os
import random
import re
import socket

import h11
import pytest
from conftest import SECRET, Client, Program, ask, free_port, is_ready, request, signed, until
from corpus import CORPUS, FRAMING, NEXT

from hookq import wire

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]+\r\n")
ROWS = pytest.mark.parametrize(
    ("section", "what", "data", "code"),
    CORPUS,
    ids=[f"{n}-{row[1]}" for n, row in enumerate(CORPUS)],
)
MUTATIONS = int(os.environ.get("HOSTILE", "20000"))
# The same bytes whatever ran before: by their number the dice fall.
RIGHT = request(headers=signed(delivery_id="right"))


@pytest.fixture(scope="module")
def programs(redis_server, tmp_path_factory):
    """One process of each for the whole corpus: it must survive all of it."""
    folder = tmp_path_factory.mktemp("hostile")
    ports = {"webhookd.py": free_port(), "dashboard.py": free_port()}
    env = {
        "WEBHOOK_SECRET": SECRET,
        "DASHBOARD_PASSWORD": "a-password",
        "REDIS_URL": redis_server.url,
        "STATE_DIR": str(folder),
        "WEBHOOKS_FILE": "",
    }
    env |= {"PORT": str(ports["webhookd.py"]), "DASHBOARD_PORT": str(ports["dashboard.py"])}
    started = [Program(folder, name, env=env) for name in ports]
    until(lambda: all(is_ready(port) for port in ports.values()))
    yield ports
    for program in started:
        assert program.process.poll() is None and "Traceback" not in program.text
        program.end()


@pytest.fixture
def port(programs):
    return programs["webhookd.py"]


def expects(data):
    """Tell whether a request waits for 100 Continue."""
    return b"expect: 100-continue" in data.lower()


def answers(port, data, *, slowly=False):
    """Return the codes that come back, to the end of the connection; the sender says that no more
    is coming.

    In one piece, a short request is here with its body, or not at all. Byte by byte, whoever
    expects 100 Continue waits for it where its head ends: or it were chance whether the body is
    here when the head is judged, and RFC 9110 section 10.1.1 allows both answers.
    """
    found = b""
    with Client(port) as client:
        try:
            for end in range(1, len(data) + 1) if slowly else ():
                client.send(data[end - 1 : end])
                if data[:end].endswith(b"\r\n\r\n") and expects(data[:end]):
                    found += client.sock.recv(65536)
            client.send(b"" if slowly else data).sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was refused before it was all sent
        try:
            while more := client.sock.recv(65536):
                found += more
        except OSError:
            pass  # what had been said before still counts
    return [int(code) for code in STATUS.findall(found)], found


@ROWS
def test_request_gets_the_answer_of_the_corpus(port, section, what, data, code):
    for slowly in (False, len(data) < 400):
        codes, found = answers(port, data, slowly=slowly)
        if (
            slowly and expects(data) and code == 401
        ):  # its head was right, and its body was not here
            assert codes.pop(0) == 100, (section, what, found)
        assert codes[:1] == [code], (section, what, found[:300])
        assert b"smuggled" not in found and len(codes) == 1 or code < 400, (section, what, found)


@ROWS
def test_request_concatenated_to_a_good_one_does_it_no_harm(port, section, what, data, code):
    codes, found = answers(port, request() + data)
    assert codes[0] == 202 and codes[1] == code, (section, what, found)
    assert len(codes) == 2 or code < 400


@pytest.mark.parametrize(
    ("section", "what", "data", "code"),
    [row for row in FRAMING if NEXT in row[2]],
    ids=[row[1] for row in FRAMING if NEXT in row[2]],
)
def test_nothing_within_a_request_is_taken_for_another(port, section, what, data, code):
    codes, _ = answers(port, data)
    assert len(codes) == 1


@ROWS
def test_page_refuses_what_ingestion_refuses(programs, section, what, data, code):
    """The page reads heads by the same parser: what is malformed is refused there too, before the
    login is asked for.
    """
    codes, _ = answers(programs["dashboard.py"], data)
    # Its own limits and paths differ: a form of 16 KiB, other pages, no source.
    malformed = code in (400, 414, 417, 431, 501, 505)
    assert len(codes) == 1 and (
        codes[0] == code if malformed else codes[0] in (200, 303, 401, 404, 405, 411, 413, 421)
    ), (
        section,
        what,
        codes,
    )


def by_h11(data):
    """Return (method, target, length of the body) of the first request as h11 reads it, None if it
    refuses or wants more.
    """
    peer = h11.Connection(h11.SERVER)
    try:
        peer.receive_data(data)
        head = peer.next_event()
        if not isinstance(head, h11.Request):
            return None
        length = 0
        while isinstance(event := peer.next_event(), h11.Data):
            length += len(event.data)
        return (head.method, head.target, length) if isinstance(event, h11.EndOfMessage) else None
    except h11.RemoteProtocolError:
        return None


def by_us(data):
    try:
        end = wire.head_end(data)
        found = wire.parse_head(data[:end]) if end > 0 else None
        return (
            (found.method.encode(), found.length or 0, end)
            if found and len(data) >= end + (found.length or 0)
            else None
        )
    except wire.BadRequest:
        return None


def mutated(dice):
    """Return a request with a few bytes changed, doubled, cut or swapped for those that parsers
    stumble over.
    """
    data = bytearray(dice.choice([RIGHT, *(row[2] for row in CORPUS if len(row[2]) < 2000)]))
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(data) + 1)
        what = dice.randrange(4)
        if what == 0 and at < len(data):
            data[at] = dice.choice(b"\r\n\t :,;\x00\x0b\x7f\xff0159GPH_-")
        elif what == 1:
            data[at:at] = dice.choice(
                [
                    b"\r\n",
                    b"\n",
                    b"\r",
                    b" ",
                    b"\t",
                    b"0",
                    b"Content-Length: 5\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"\r\n\r\n",
                ]
            )
        elif what == 2:
            del data[at : at + dice.randrange(1, 4)]
        else:
            data[at:at] = data[at : at + dice.randrange(1, 20)]
    return bytes(data)


def test_nothing_that_h11_refuses_is_accepted():
    dice, both = random.Random(7), 0
    for _ in range(MUTATIONS):
        data = mutated(dice)
        ours, theirs = by_us(data), by_h11(data)
        if ours:
            both += 1
            assert theirs and (ours[0], ours[1]) == (theirs[0], theirs[2]), (data, ours, theirs)
    assert both > MUTATIONS / 20  # or nothing was compared


def test_mutated_requests_are_all_answered_once_and_ingestion_lives(serve):
    dice, (program, port) = random.Random(11), serve()
    for _ in range(MUTATIONS // 20):
        data = mutated(dice)
        codes, found = answers(port, data)
        ours = by_us(data)
        codes = [code for code in codes if code != 100 or not expects(data)]
        assert all(
            code in {200, 202, 400, 401, 404, 405, 411, 413, 414, 417, 431, 501, 503, 505}
            for code in codes
        ), (data, found)
        assert codes or not ours, data
        assert len(codes) <= 1 + data.count(b"HTTP/"), (data, found)
    assert ask(port, request())[0].startswith("HTTP/1.1 202")
    assert program.end() == 0 and "Traceback" not in program.text
