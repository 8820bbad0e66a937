"""The sizes of the house: what `make lint` prints, and tests/test_house.py holds to its limits.

    python tests/house.py            the total, and whatever is over a limit

A line of code is one that holds a token: no blank, comment or docstring. The attributes of a class
are those that it sets on itself (`self.name = …`): its state. A record's fields are a table.
"""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = [ROOT / name for name in ("webhookd.py", "worker.py", "dashboard.py", "dlqctl.py")]
SHARED = sorted((ROOT / "hookq").rglob("*.py"))
CODE = PROGRAMS + SHARED
# A file that is read in ten minutes, a class that is held in the head, a function on one screen.
MAX_FILE, MAX_CLASS, MAX_ATTRIBUTES, MAX_FUNCTION = 450, 270, 15, 45


def name_of(path):
    return str(path.relative_to(ROOT))


def parsed(path):
    return ast.parse(path.read_text())


def imports(path):
    """Yield the modules that a file imports, with dots; a name out of the package is one, too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def length(node):
    return node.end_lineno - node.lineno + 1


def attributes(node):
    """Return the names that a class sets on itself."""
    found = set()
    for part in ast.walk(node):
        targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
        for target in targets:
            for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name):
                    found |= {name.attr} if name.value.id == "self" else set()
    return found


def over(path):
    """Yield (what, its size) for whatever in a file is over a limit."""
    name, lines = name_of(path), len(path.read_text().splitlines())
    if lines > MAX_FILE:
        yield name, lines
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef) and length(node) > MAX_FUNCTION:
            yield f"{name}: {node.name}()", length(node)
        elif isinstance(node, ast.ClassDef):
            if length(node) > MAX_CLASS:
                yield f"{name}: class {node.name}", length(node)
            if len(attributes(node)) > MAX_ATTRIBUTES:
                yield f"{name}: attributes of {node.name}", len(attributes(node))


def code_lines(path):
    """Return the numbers of the lines that hold code."""
    text, numbers = path.read_text(), set()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent | {tokenize.ENDMARKER}:
            numbers.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            numbers -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return numbers


if __name__ == "__main__":
    print(f"{sum(len(code_lines(path)) for path in CODE):,} lines of code in {len(CODE)} files")
    for what, size in (row for path in CODE for row in over(path)):
        print(f"over its limit: {what} has {size}")
