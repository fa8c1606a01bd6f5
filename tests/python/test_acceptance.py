"""What can be seen of a command without running it; Rust is held to the same cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mnemosyne.acceptance import can_fail

CASES = json.loads((Path(__file__).parents[1] / "shared" / "acceptance.json").read_text())


@pytest.mark.parametrize("command", CASES["cannot_fail"])
def test_truth_1_a_command_that_succeeds_whatever_was_done_is_seen(command: str) -> None:
    assert not can_fail(command)


@pytest.mark.parametrize("command", CASES["can_fail"])
def test_a_command_that_may_fail_is_left_to_be_measured(command: str) -> None:
    assert can_fail(command)
