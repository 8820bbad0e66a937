"""The rules of the house, as code: those that no linter knows."""

import ast
import re
import sys

import pytest
from house import CODE, PROGRAMS, ROOT, SHARED, imports, name_of, over, parsed

PURE = {"arrival", "job", "metrics", "retry", "schemes", "signing", "special", "wire"}
# What a pure module may not import: whatever knows the time, chance, the machine, or another
# process.
IMPURE = {
    "time",
    "random",
    "os",
    "socket",
    "select",
    "selectors",
    "subprocess",
    "redis",
    "secrets",
    "threading",
    "pathlib",
    "logging",
}
# The package's front door, and what `make run` starts.
ENTRIES = {ROOT / "hookq/__init__.py", ROOT / "hookq/launch.py"}
THIRD_PARTY = {"redis", "hiredis"}
STORE = {"hookq/store", "hookq/ingest/intake.py"}  # who may know Redis; only `keys` spells a key
# Who may import whom. The ground floor from below up: a room imports only from rows above its own.
GROUND = (
    {"arrival", "job", "log", "outcome", "redis_url", "schemes", "wire"},
    {"metrics", "special"},
    {"signing"},
    {"selftest", "sources"},
    {"settings"},
    {"daemon"},
)
# The wings, and what each may import besides the ground floor and itself.
WINGS = {"store": set(), "ingest": {"store"}, "work": {"store"}, "operate": {"store"}}
# Written down, each with its reason: the audit counts what is in this machine's spool.
EXCEPTIONS = {("operate", "ingest.spool")}
# One word per thing; these are the words we do not use for one.
FOREIGN_WORDS = re.compile(
    r"\b(morgue|nack|requeue|replay|in.flight|dead.?letter.queue|purge|visibility)\b", re.IGNORECASE
)


def tops(path):
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_module_opens_with_a_docstring(path):
    docstring = ast.get_docstring(parsed(path))
    assert docstring and len(docstring) > 80


@pytest.mark.parametrize("path", [p for p in SHARED if p.stem in PURE], ids=name_of)
def test_pure_module_touches_nothing_outside(path):
    assert not IMPURE & tops(path)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_only_the_store_knows_redis(path):
    knows = name_of(path) in STORE or name_of(path.parent) in STORE
    assert knows or not THIRD_PARTY & tops(path)
    assert path.stem == "keys" or "{hookq}" not in path.read_text()


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_few_packages_are_imported_and_no_program(path):
    assert tops(path) <= set(sys.stdlib_module_names) | THIRD_PARTY | {"hookq"}
    assert not tops(path) & {program.stem for program in PROGRAMS}


@pytest.mark.parametrize("path", SHARED, ids=name_of)
def test_no_room_imports_from_above_or_from_another_wing(path):
    used = {name.removeprefix("hookq.") for name in imports(path) if name.startswith("hookq.")}
    rooms = {str(room.relative_to(ROOT / "hookq"))[:-3].replace("/", ".") for room in SHARED}
    used &= rooms
    if path.parent.name in WINGS:
        wing = path.parent.name
        wings = {room.split(".")[0] for room in used if "." in room} - {wing}
        excepted = {room.split(".")[0] for by, room in EXCEPTIONS if by == wing and room in used}
        assert wings <= WINGS[wing] | excepted
    elif path not in ENTRIES:
        floor = next(n for n, floor in enumerate(GROUND) if path.stem in floor)
        assert used <= set().union(*GROUND[:floor])


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_no_except_is_bare_or_silently_broad(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}"
            broad = isinstance(node.type, ast.Name) and node.type.id in (
                "Exception",
                "BaseException",
            )
            assert not (broad and isinstance(node.body[0], ast.Pass)), f"{path.name}:{node.lineno}"


def test_files_classes_and_functions_keep_their_limits():
    assert not [row for path in CODE for row in over(path)]


def test_name_of_a_test_is_short_enough_to_read():
    named = re.findall(
        r"def (test_\w+)", "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    )
    assert not [name for name in named if len(name) > len("test_") + 60]


@pytest.mark.parametrize("path", SHARED, ids=name_of)
def test_no_module_shadows_the_standard_library(path):
    # Within the package nothing is shadowed; the names must still not confuse a reader who sees
    # `import queue`.
    assert path.stem not in {"queue", "http", "logging", "signal", "types"}


@pytest.mark.parametrize(
    "path",
    [*CODE, ROOT / "README.md", *sorted((ROOT / "hookq/store/lua").glob("*.lua"))],
    ids=name_of,
)
def test_one_word_is_used_for_one_thing(path):
    assert not FOREIGN_WORDS.findall(path.read_text())


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_no_work_is_left_for_later(path):
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "hookq/store/lua").glob("*.lua")), ids=name_of)
def test_script_says_what_its_arguments_are(path):
    head = "".join(line for line in path.read_text().splitlines(True) if line.startswith("--"))
    assert path.stem == "prelude" or ("ARGV" in head and "eturns" in head) or path.stem == "audit"


def test_no_secret_is_a_flag():
    from hookq.settings import SETTINGS

    secrets = {row.name for row in SETTINGS if row.secret}
    for path in PROGRAMS:
        flags = re.findall(r"add_flags\(([^)]*)\)", path.read_text())
        assert not any(name in flag for name in secrets for flag in flags)


def test_no_shell_is_started_from_python():
    for path in CODE:
        assert "shell=True" not in path.read_text() and "os.system" not in path.read_text()
