"""A few interrupts of every command; `python -m tests.hammer` is the long form."""

import pytest

from tests.hammer import COMMANDS, hammered
from tests.helpers.commands import HANGS


@pytest.mark.parametrize("command", COMMANDS)
def test_one_interrupt_ends_a_command(command, tmp_path):
    ends = hammered(tmp_path, command, 4 if command == "train" else 2, seconds=4, within=HANGS, seed=1)
    assert not [end for end in ends if end.startswith("FAULT")], ends
