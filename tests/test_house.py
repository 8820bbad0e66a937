"""The rules of the house, as code: those that no linter knows."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = [ROOT / name for name in ("webhookd.py", "worker.py", "dashboard.py", "dlqctl.py")]
SHARED = sorted((ROOT / "hookq").glob("*.py"))
CODE = PROGRAMS + SHARED
PURE = {"job", "retry", "schemes", "signing", "wire", "metrics"}
# What a pure module may not import: whatever knows the time, chance, the machine, or another process.
IMPURE = {"time", "random", "os", "socket", "select", "selectors", "subprocess", "redis", "secrets", "threading", "pathlib", "logging"}
THIRD_PARTY = {"redis", "hiredis"}
STORE = {"store", "intake", "link"}  # who may know Redis; only `keys` spells a key
MAX_LINES, MAX_FUNCTION = 5800, 45
# One word per thing; these are the words we do not use for one.
FOREIGN_WORDS = re.compile(r"\b(morgue|nack|requeue|replay|in.flight|dead.?letter.queue|purge|visibility)\b", re.IGNORECASE)


def parsed(path):
    return ast.parse(path.read_text())


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.stem)
def test_module_opens_with_a_docstring(path):
    docstring = ast.get_docstring(parsed(path))
    assert docstring and len(docstring) > 80


@pytest.mark.parametrize("path", [p for p in SHARED if p.stem in PURE], ids=lambda p: p.stem)
def test_pure_module_touches_nothing_outside(path):
    assert not IMPURE & set(imports(parsed(path)))


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.stem)
def test_only_the_store_knows_redis(path):
    assert path.stem in STORE or not THIRD_PARTY & set(imports(parsed(path)))
    assert path.stem == "keys" or "{hookq}" not in path.read_text()


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.stem)
def test_imports_go_one_way_and_to_few_packages(path):
    found = set(imports(parsed(path)))
    assert found <= set(sys.stdlib_module_names) | THIRD_PARTY | {"hookq"}
    assert not found & {program.stem for program in PROGRAMS}


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.stem)
def test_no_except_is_bare_or_silently_broad(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            assert not (broad and isinstance(node.body[0], ast.Pass)), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.stem)
def test_functions_are_short(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{path.name}: {node.name} has {length} lines"


def code_lines(path):
    """Return the numbers of the lines that hold code: no blanks, comments, docstrings."""
    text, numbers = path.read_text(), set()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            numbers.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            numbers -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return numbers


def test_code_stays_small():
    assert sum(len(code_lines(path)) for path in CODE) <= MAX_LINES


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.stem)
def test_no_module_shadows_the_standard_library(path):
    # Within the package nothing is shadowed; the names must still not confuse a reader who sees `import queue`.
    assert path.stem not in {"queue", "http", "logging", "signal", "types"}


@pytest.mark.parametrize("path", [*CODE, ROOT / "README.md", *sorted((ROOT / "hookq/lua").glob("*.lua"))], ids=lambda p: p.name)
def test_one_word_is_used_for_one_thing(path):
    assert not FOREIGN_WORDS.findall(path.read_text())


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.stem)
def test_no_work_is_left_for_later(path):
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "hookq/lua").glob("*.lua")), ids=lambda p: p.stem)
def test_script_says_what_its_arguments_are(path):
    head = "".join(line for line in path.read_text().splitlines(True) if line.startswith("--"))
    assert path.stem == "prelude" or ("ARGV" in head and "eturns" in head) or path.stem == "audit"


def test_no_secret_is_a_flag():
    from hookq.config import SETTINGS

    secrets = {row.name for row in SETTINGS if row.secret}
    for path in PROGRAMS:
        flags = re.findall(r"add_flags\(([^)]*)\)", path.read_text())
        assert not any(name in flag for name in secrets for flag in flags)


def test_no_shell_is_started_from_python():
    for path in CODE:
        assert "shell=True" not in path.read_text() and "os.system" not in path.read_text()
