"""README says what is there: its drawing, settings, flags, codes and files are compared with the
code.
"""

import re
from pathlib import Path

import pytest

import dlqctl
from hookq import job, schemes, settings
from hookq.sources import HMAC_KEYS, KEYS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FOLDERS = ("bench", "examples", "hookq", "ops", "templates", "tests")


def test_drawing_of_readme_is_that_of_the_code():
    assert job.DRAWING in README


def test_drawing_shows_every_state_and_every_verb():
    states = {state for state, _ in job.MOVES} | set(job.MOVES.values())
    for word in [s.upper() for s in states - {job.ABSENT}] + [verb for _, verb in job.MOVES]:
        assert re.search(rf"\b{word}\b", job.DRAWING), word


@pytest.mark.parametrize("row", settings.SETTINGS, ids=lambda row: row.name)
def test_setting_stands_in_readme_and_example_with_its_default(row):
    table = next(
        line for line in README.splitlines() if line.startswith("|") and f"`{row.name}`" in line
    )
    assert row.secret or row.default in table
    assert (
        f"# {row.name}={'' if row.secret else row.default}"
        in (ROOT / ".env.example").read_text().splitlines()
    )


def test_flags_of_dlqctl_stand_in_readme():
    for action in dlqctl.parser()._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and flag not in (
                "--help",
                "--version",
                "--state-dir",
                "--webhooks-file",
            ):
                assert flag in README, flag


def test_keys_of_the_example_are_known(monkeypatch):
    text = (ROOT / "webhooks.example.toml").read_text()
    for key in {*KEYS, *HMAC_KEYS}:
        assert re.search(rf"^(# )?({key} =|\[\[sources\.[a-z]+\.{key}\]\])", text, re.MULTILINE), (
            key
        )


@pytest.mark.parametrize(
    "text", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=lambda p: p.stem
)
def test_file_that_a_document_names_is_there(text):
    known = [*ROOT.glob("*.*"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.*"))]
    for name in re.findall(r"`([a-z_./]+\.(?:py|lua|conf|sh|json|yml|html|js))`", text.read_text()):
        is_theirs = name in ("handlers.py", "h.py")
        assert is_theirs or any(f"/{path}".endswith(f"/{name}") for path in known), name


def test_targets_of_make_stand_in_readme():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in targets:
        assert re.search(rf"`(make )?{target}`", README), target


def test_codes_of_readme_are_those_of_the_code():
    codes = {
        value
        for module in (settings, dlqctl)
        for name, value in vars(module).items()
        if name.startswith("EX_")
    }
    said = re.search(r"Exit codes: ([^.]*)\.", README)[1]
    assert {int(code) for code in re.findall(r"\d+", said)} == codes | {0, 1}


def test_every_preset_has_its_section_whose_lines_are_good(tmp_path):
    text = (ROOT / "docs/sources.md").read_text()
    sections = dict(re.findall(r"^## ([a-z-]+)\n\n((?:    .*\n)+)", text, re.MULTILINE))
    assert set(sections) == set(schemes.SCHEMES)
    for name, lines in sections.items():
        (tmp_path / "webhooks.toml").write_text(re.sub(r"^    ", "", lines, flags=re.MULTILINE))
        assert f'scheme = "{name}"' in lines
        secret = "whsec_" + "A" * 32
        environ = dict.fromkeys(re.findall(r"env:([A-Z_]+)", lines), secret)
        assert len(settings.load({}, environ, tmp_path).sources) == 1


def test_guarantees_name_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/proof.md").read_text()))
    there = set(
        re.findall(
            r"^def (test_\w+)",
            "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py")),
            re.MULTILINE,
        )
    )
    assert len(named) >= 14 and named <= there, named - there
