"""What started yesterday starts today: the state that an earlier version left, killed in the middle
of its work, and its example settings, unchanged.
"""

import shutil

import pytest
import test_stack
from conftest import ROOT, until

stack = test_stack.stack
RECORDED = sorted(path.parent for path in (ROOT / "tests/data").glob("*/state"))


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.name)
def test_recorded_state_is_worked_on_to_its_end(stack, recorded):
    shutil.copytree(recorded / "state", stack.folder / "v")
    stack.folder.joinpath("v").chmod(0o700)
    shutil.copy(recorded / "webhooks.toml", stack.folder / "w.toml")
    stack.start()
    # The retry was due within the hour: by now it is, and was not when it was recorded.
    moving = ("ready", "leased", "spooled")
    until(lambda: not any(stack.audit()[name] for name in moving), 60, "what waited is done")
    found = stack.audit()
    assert found["accepted"] == 13 and found["done"] + found["retry"] == 10
    assert (found["dead"], found["discarded"], found["gap"]) == (2, 1, 0)
    assert stack.dlqctl("--audit").returncode == 0
    assert "gave_up: GiveUp: as asked" in stack.dlqctl("--view").stdout
