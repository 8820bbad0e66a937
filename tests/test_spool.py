"""The spool on real disks, with real processes: what it said it has survives kill -9, a cut WAL, a
full disk and company.
"""

import bisect
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, delivery, until

from hookq.ingest.spool import ADD, OLDEST, ROOM, ROW_BYTES, SCHEMA, WAIT_S, Spool, SpoolFailed

MB = 1 << 20
# A child has `spool`, `one(id)` makes an entry of a batch, `patient` asks again while others hold
# the file.
PRELUDE = """
import os, resource, signal, sys
from pathlib import Path
from hookq.job import Delivery
from hookq.ingest.spool import Spool, SpoolFailed
spool = Spool(Path(sys.argv[1]), 1 << 30)
def one(id, size=3000):
    return Delivery(id, "github", id, "push", 1.5, b"A: b", os.urandom(size)), 60
def patient(call, *args):
    while True:
        try:
            return call(*args)
        except SpoolFailed as why:
            assert "locked" in str(why), why
"""


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "spool.db", 1 << 30)
    yield made
    made.close()


@pytest.fixture
def child():
    """child(code, path, *args) runs code after PRELUDE in a process of its own, which does not
    outlive the test.
    """
    with contextlib.ExitStack() as stack:

        def start(code, *args):
            command = [sys.executable, "-c", PRELUDE + code, *map(str, args)]
            process = stack.enter_context(
                subprocess.Popen(
                    command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own: the room that stays for the drain, and 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM + 24 * MB}", "tmpfs", disk], capture_output=True
    )
    if made.returncode:
        pytest.skip("NOT TESTED: a full disk. To mount a small tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a test that failed has its files open


def batch(count=1, size=3000):
    return [(delivery(body=os.urandom(size)), 60) for _ in range(count)]


def kept(spool, count=100_000):
    return [s.delivery.id for s in spool.oldest(count, 1 << 30)]


def drain(spool):
    """Take everything out as ingestion does; return the ids."""
    ids = []
    while found := spool.oldest(64, 8 * MB):
        ids += [s.delivery.id for s in found]
        spool.remove([s.row for s in found])
    return ids


def move_away(spool):
    for path in spool.path.parent.glob("spool.db*"):
        path.rename(path.with_name(path.name.replace("spool", "away")))


def on_disk(spool):
    return sum(p.stat().st_size for p in spool.path.parent.glob("spool.db*"))


def test_accepted_deliveries_come_back_in_order_and_byte_for_byte(spool):
    bodies = [
        b"",
        b"\0",
        bytes(range(256)) * 3,
        b"\xff\xfe\0\0",
        b'{"n":1}',
        os.urandom(25 * MB),
        b"last",
    ]
    made = [
        delivery(delivery_id=f"d-é\x80-{n}", body=body, head=b"X: \xe9\r\nY:\0" * n)
        for n, body in enumerate(bodies)
    ]
    made.append(type(made[0])("id", "s", "", "", 1700000000.1234567, b"", b"x"))
    spool.accept([(d, 100 + n) for n, d in enumerate(made[:4])])
    spool.accept([(d, 104 + n) for n, d in enumerate(made[4:])])
    spool.close()
    found = spool.oldest(100, 1 << 30)
    assert [s.delivery for s in found] == made and [s.dedupe_s for s in found] == list(
        range(100, 108)
    )
    assert spool.size() == (8, sum(len(d.head) + len(d.body) + ROW_BYTES for d in made))


def test_oldest_keeps_to_count_and_bytes_but_gives_one_that_is_larger(spool):
    spool.accept(batch(5, 10_000))
    ids = kept(spool)
    assert kept(spool, 2) == ids[:2]
    assert [s.delivery.id for s in spool.oldest(5, 3 * (10_000 + 100 + ROW_BYTES))] == ids[:3]
    assert [s.delivery.id for s in spool.oldest(5, 1)] == ids[:1]


def test_late_remove_takes_nothing_that_came_since(spool):
    spool.accept(batch(3))
    rows = [s.row for s in spool.oldest(9, MB)]
    spool.remove(rows)
    spool.accept(batch(3))
    spool.remove(rows)  # a second process, which had drained the same
    assert spool.size()[0] == 3


def test_file_moved_away_while_open_gets_and_loses_nothing_more(spool, tmp_path):
    spool.accept(batch(3))
    rows = [s.row for s in spool.oldest(9, MB)]
    move_away(spool)
    with (
        contextlib.closing(Spool(spool.path, 1 << 30)) as new,
        contextlib.closing(Spool(tmp_path / "away.db", 1)) as away,
    ):
        assert new.size() == (0, 0)
        new.accept(batch())
        spool.accept(batch())
        spool.remove(rows)
        assert (new.size()[0], away.size()[0]) == (2, 3)


def test_wal_without_its_file_is_kept_apart_from_a_new_one(spool, tmp_path):
    spool.accept(batch(3))
    spool.path.rename(tmp_path / "away")
    for call, args in (
        (spool.accept, [batch()]),
        (spool.oldest, [9, MB]),
        (spool.remove, [[1]]),
        (spool.size, []),
    ):
        with pytest.raises(SpoolFailed, match="is missing, but its -wal is there"):
            call(*args)
    (tmp_path / "away").rename(spool.path)
    spool.accept(batch())
    assert spool.size()[0] == len(kept(spool)) == 4


def test_killed_writer_loses_nothing_it_has_reported(spool, child):
    code = "n = 0\nwhile n := n + 1:\n spool.accept([one(f'{sys.argv[2]}-{n}-{k}') for k in range(3)])\n print(n, flush=True)"
    said = set()
    for life in range(8):
        writer = child(code, spool.path, life)
        for _ in range(1 + 7 * life):
            said.add(f"{life}-{writer.stdout.readline().strip()}")
        writer.send_signal(signal.SIGKILL)
        said |= {f"{life}-{line.strip()}" for line in writer.stdout if line.endswith("\n")}
        writer.wait()
    ids = kept(spool)
    whole = {id[:-2] for id in ids}
    assert len(said) > 200 and said <= whole and len(whole - said) <= 8
    assert sorted(ids) == sorted(f"{b}-{k}" for b in whole for k in range(3)) and spool.size()[
        0
    ] == len(ids)


def test_wal_cut_anywhere_leaves_whole_batches_up_to_the_last_commit(spool, tmp_path):
    spool.accept(batch(3))
    spool.close()  # what is in the file now is out of the cut's reach
    wal, ends = Path(f"{spool.path}-wal"), []
    for _ in range(20):
        spool.accept(batch(3))
        ends.append(wal.stat().st_size)
    ids, whole, db = kept(spool), wal.read_bytes(), spool.path.read_bytes()
    cuts = {
        *range(0, len(whole), len(whole) // 80),
        *ends,
        *(end - 1 for end in ends),
        *range(0, 64, 8),
    }
    for cut in cuts:
        copy = Spool(tmp_path / f"{cut}" / "spool.db", 1 << 30)
        copy.path.parent.mkdir()
        copy.path.write_bytes(db)
        Path(f"{copy.path}-wal").write_bytes(whole[:cut])
        expected = 3 + 3 * bisect.bisect_right(ends, cut)
        assert copy.size()[0] == expected and kept(copy) == ids[:expected], cut
        copy.accept(batch())
        assert copy.size()[0] == expected + 1
        copy.close()
    assert len(ids) == 63 and len(cuts) > 100


def test_two_writers_and_a_drain_at_once_keep_each_delivery_once(spool, child):
    code = "for n in range(150): patient(spool.accept, [one(f'{sys.argv[2]}-{n:03}-{k}') for k in range(4)])"
    writers, ids = [child(code, spool.path, name) for name in "ab"], []

    def done():
        over = all(writer.poll() is not None for writer in writers)
        with contextlib.suppress(SpoolFailed):
            found = spool.oldest(32, MB)
            spool.remove([s.row for s in found])
            ids.extend(s.delivery.id for s in found)
            return over and spool.size() == (0, 0)

    until(done, 120)
    wanted = {name: [f"{name}-{n:03}-{k}" for n in range(150) for k in range(4)] for name in "ab"}
    assert {name: [i for i in ids if i[0] == name] for name in "ab"} == wanted


def test_first_use_by_many_processes_at_once_makes_one_spool(tmp_path, child):
    code = "for n in range(40): patient(Spool(Path(sys.argv[1], f'{n}.db'), 1 << 30).accept, [one(sys.argv[2])])"
    many = [child("print(flush=True)\ninput()\n" + code, tmp_path, name) for name in "abcd"]
    assert [p.stdout.readline() for p in many] == ["\n"] * 4
    for process in many:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [p.wait(120) for p in many] == [0] * 4
    for n in range(40):
        with contextlib.closing(Spool(tmp_path / f"{n}.db", 1)) as spool:
            assert sorted(kept(spool)) == list("abcd")
    assert len(list(tmp_path.iterdir())) == 40  # and nothing of the making is left


def test_spool_that_another_makes_at_the_same_moment_is_not_replaced(spool, child):
    code = """
other, turns = Spool(spool.path, 1 << 30), ["once"]
def meanwhile(event, _):
    if event in ("os.link", "os.rename") and turns and turns.pop():
        other.accept([one("other")])
        other.close()
sys.addaudithook(meanwhile)
spool.accept([one("own")])
"""
    assert child(code, spool.path).wait(30) == 0
    assert kept(spool) == ["other", "own"]


def test_limit_refuses_the_whole_batch_until_rows_are_removed(spool):
    spool.accept(batch(3))
    before = kept(spool), spool.size()
    with contextlib.closing(Spool(spool.path, 20_000)) as other:
        with pytest.raises(SpoolFailed, match=r"is full: it holds 12,\d+ of at most 20,000 bytes"):
            other.accept(batch(2))
        assert (kept(other), spool.size()) == before
        spool.remove([s.row for s in spool.oldest(1, 1)])
        other.accept(batch(2))
    assert spool.size()[0] == 4


def test_file_that_may_not_grow_refuses_and_takes_again_when_it_may(spool, child):
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))
try:
    for n in range(9999):
        spool.accept([one(f"{n}"), one(f"{n}+")])
except SpoolFailed as why:
    print(n, spool.size()[0], why, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
spool.accept([one("again")])
"""
    count, size, said = child(code, spool.path).communicate(timeout=60)[0].strip().split(" ", 2)
    assert (
        said
        == f"The spool {spool.path} cannot be used: its disk fails, or lets no file grow further."
    )
    assert int(size) == 2 * int(count) > 20
    assert kept(spool) == [f"{n}{end}" for n in range(int(count)) for end in ("", "+")] + ["again"]


def test_full_disk_refuses_and_takes_again_when_there_is_room(small_disk):
    old, new = Spool(small_disk / "spool.db", 1 << 30), Spool(small_disk / "new.db", 1 << 30)
    old.accept(batch())
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", 0) as ballast:
        while ballast.write(bytes(4096)):
            pass
    for spool, size in ((old, 1), (new, 0)):
        with pytest.raises(SpoolFailed, match="disk|No space"):
            spool.accept(batch())
        assert spool.size()[0] == size
    (small_disk / "ballast").unlink()
    for spool, size in ((old, 2), (new, 1)):
        spool.accept(batch())
        assert spool.size()[0] == len(kept(spool)) == size
        spool.close()
    assert {p.name for p in small_disk.iterdir()} == {"spool.db", "new.db"}


@pytest.mark.parametrize("size", [5_600, 3_000_000])
def test_spool_that_has_filled_its_disk_can_be_drained(small_disk, size):
    spool, ids = Spool(small_disk / "spool.db", 1 << 30), []
    with pytest.raises(SpoolFailed, match="its disk has hardly more than"):
        while new := batch(size=size):
            spool.accept(new)
            ids.append(new[0][0].id)
    assert len(ids) > 3 and drain(spool) == ids and spool.size() == (0, 0)
    spool.accept(batch(size=size))
    spool.close()


def spoil(path, how):
    made = Spool(path, 1 << 30)
    if how in ("pages", "version"):
        made.accept(batch(9))
        made.close()
    if how == "pages":
        path.write_bytes(path.read_bytes()[:4096] + b"\x7f" * (path.stat().st_size - 4096))
    elif how in ("foreign", "version"):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE theirs (a)" if how == "foreign" else "PRAGMA user_version = 2")
    else:
        path.write_bytes(how)


@pytest.mark.parametrize(
    "how",
    ["pages", "foreign", "version", b"", b"no database " * 999, b"SQLite format 3\0" + bytes(9000)],
)
def test_malformed_file_is_refused_and_left_as_it_is(spool, how):
    spoil(spool.path, how)
    before = spool.path.read_bytes()
    why = r"spool\.db cannot be used: it is malformed, or no spool: move it away"
    if how == "version":
        why = r"spool\.db was written by a newer webhookd \(format 2; this one knows 1\)"
    for call in (
        lambda: spool.accept(batch()),
        lambda: spool.oldest(9, MB),
        lambda: spool.remove([1]),
        spool.size,
    ):
        with pytest.raises(SpoolFailed, match=why):
            call()
    assert spool.path.read_bytes() == before
    move_away(spool)
    spool.accept(batch())
    assert spool.size()[0] == 1


def test_file_of_another_user_is_refused_with_a_sentence(child):
    folder = Path(tempfile.mkdtemp(prefix="hq"))  # the test's own folder is closed to others
    spool = Spool(folder / "spool.db", 1 << 30)
    spool.accept(batch())
    spool.close()
    folder.chmod(0o755)
    spool.path.chmod(0)
    code = """
if os.getuid() == 0: os.setuid(65534)
for call in (spool.size, lambda: spool.oldest(1, 1), lambda: spool.remove([1]), lambda: spool.accept([one("a")])):
    try: call()
    except SpoolFailed as why: print(why)
"""
    said = child(code, spool.path).communicate(timeout=60)[0].splitlines()
    assert (
        said
        == [f"The spool {spool.path} cannot be used: this process may not open or write it."] * 4
    )
    shutil.rmtree(folder)


def test_nothing_is_made_before_the_first_delivery(spool, tmp_path):
    assert spool.size() == (0, 0) and spool.oldest(9, 9) == [] and spool.remove([1]) == 0
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_a_failure_and_not_an_empty_spool(tmp_path):
    (tmp_path / "file").touch()
    for folder, said in (
        ("none", r"The folder of the spool .* is missing"),
        ("file", "cannot be used: Not a directory"),
    ):
        spool = Spool(tmp_path / folder / "spool.db", 1 << 30)
        for call, args in (
            (spool.accept, [batch()]),
            (spool.oldest, [9, MB]),
            (spool.remove, [[1]]),
            (spool.size, []),
        ):
            with pytest.raises(SpoolFailed, match=said):
                call(*args)


def test_open_transaction_blocks_no_reader_and_writers_briefly(spool, child):
    spool.accept(batch(2))
    with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        holder.execute("DELETE FROM spool")
        reader = child("print(*spool.size(), spool.oldest(1, 1)[0].delivery.source)", spool.path)
        assert reader.communicate(timeout=60)[0].split() == ["2", str(spool.size()[1]), "github"]
        began = time.monotonic()
        with pytest.raises(
            SpoolFailed, match=r"another process has kept it locked for more than 0\.5 s"
        ):
            spool.accept(batch())
        assert 0.4 < time.monotonic() - began < 4  # of itself, SQLite waits for 5 s
    spool.accept(batch())
    assert spool.size()[0] == 3


def test_size_changes_nothing_even_where_a_killed_writer_left_a_wal(spool, tmp_path):
    spool.accept(batch(2))
    for end in ("", "-wal"):
        (tmp_path / f"left.db{end}").write_bytes(Path(f"{spool.path}{end}").read_bytes())
    with contextlib.closing(Spool(tmp_path / "left.db", 1 << 30)) as left:
        before = left.path.read_bytes(), Path(f"{left.path}-wal").read_bytes()
        assert left.size()[0] == 2
        assert (left.path.read_bytes(), Path(f"{left.path}-wal").read_bytes()) == before
        left.accept(batch())  # the connection that only read is not used to write
        assert left.size()[0] == 3


def test_files_are_private_whatever_the_umask(spool):
    old = os.umask(0)
    try:
        spool.accept(batch())
        assert [p.stat().st_mode & 0o777 for p in spool.path.parent.iterdir()] == [0o600] * 3
    finally:
        os.umask(old)


def test_drained_spool_gives_the_disk_back_and_its_wal_stays_small(spool):
    wal = Path(f"{spool.path}-wal")
    for size in (3_000_000, 300_000):
        for _ in range(30_000_000 // size):
            spool.accept(batch(size=size))
            spool.oldest(9, 1)  # stops early, and must not leave a read open
            assert wal.stat().st_size < 5 * MB + 2 * size
        assert on_disk(spool) > 30_000_000
        drain(spool)
        assert on_disk(spool) < MB
    for size in (20 * MB, 3000, 3000):
        spool.accept(batch(size=size))
    assert spool.size()[0] == 3 and wal.stat().st_size < 5 * MB


def test_reader_in_the_way_delays_the_giving_back_but_not_the_drain(spool):
    wal = Path(f"{spool.path}-wal")
    spool.accept(batch(10, 3_000_000))
    with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM total").fetchone()
        began = time.monotonic()
        drain(spool)
        grown, written_at = on_disk(spool), wal.stat().st_mtime_ns
        assert [spool.oldest(1, 1) for _ in range(50)] == [[]] * 50
        assert time.monotonic() - began < 50 * WAIT_S / 2
        assert on_disk(spool) == grown > 30_000_000 and wal.stat().st_mtime_ns == written_at
    assert spool.oldest(1, 1) == [] and on_disk(spool) < MB


def test_sql_is_that_of_every_spool_so_far():
    # A spool outlives an update of webhookd: what the table of a job's fields makes must fit it.
    def flat(text):
        return " ".join(text.split())

    assert (
        "CREATE TABLE spool (row INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL, "
        "dedupe_s INTEGER NOT NULL, id TEXT NOT NULL, source TEXT NOT NULL, "
        "delivery_id TEXT NOT NULL, event_type TEXT NOT NULL, received_at REAL NOT NULL, "
        "head BLOB NOT NULL, body BLOB NOT NULL, secret INTEGER NOT NULL);"
    ) in flat(SCHEMA)
    assert flat(ADD) == (
        "INSERT INTO spool (bytes, dedupe_s, id, source, delivery_id, event_type, received_at, "
        "head, body, secret) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    assert flat(OLDEST) == (
        "SELECT row, bytes, dedupe_s, id, source, delivery_id, event_type, received_at, head, "
        "body, 0, secret FROM spool ORDER BY row LIMIT ?"
    )
