"""A few interrupts of every command; `python -m tests.hammer` is the long form."""

import pytest

from tests.hammer import COMMANDS, hammered, prepare
from tests.helpers.commands import HANGS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_one_interrupt_ends_a_command(command, prepared, tmp_path):
    times = 2 if command == "train" else 1
    ends = hammered(prepared, tmp_path / "written", command, times, seconds=4, within=HANGS, seed=1)
    assert not [end for end in ends if end.startswith("FAULT")], ends
