"""The page on many runs is a program that runs as it stands, and prints what it shows."""

import re

import pytest

from tests.helpers.commands import ROOT

BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def require_as_shown(shown, printed):
    """The same words, and each number to its last digit that is shown, give or take one."""
    assert NUMBER.split(printed) == NUMBER.split(shown)
    for number, other in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        unit = 10.0 ** -len(other.partition(".")[2]) if "." in other else 0.0
        assert abs(float(number) - float(other)) <= 1.001 * unit, (printed, shown)


def test_the_page_runs_and_prints_what_it_shows(capsys):
    page = (ROOT / "docs" / "many_runs.md").read_text(encoding="utf-8")
    names: dict = {}
    for kind, block in BLOCK.findall(page):
        if kind == "python":
            assert capsys.readouterr().out == ""  # what the block before has printed is shown
            exec(compile(block, "docs/many_runs.md", "exec"), names)  # our own text
        else:
            require_as_shown(block, capsys.readouterr().out)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("printed", ["loss 2.78\n", "loss 2.7\n", "lost 2.76\n", "loss 2.76, 2.76\n"])
def test_a_figure_that_is_not_as_shown_is_found(printed):
    require_as_shown("loss 2.76\n", "loss 2.77\n")
    with pytest.raises(AssertionError):
        require_as_shown("loss 2.76\n", printed)
