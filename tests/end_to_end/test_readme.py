"""README shows code that runs."""

import re

import pytest

from tests.helpers.commands import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("code", BLOCKS)
def test_python_in_the_readme_runs(code):
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)  # our own text
    assert names["texts"].shape == (4, 100)
    assert float(names["metrics"]["loss"]) > 3.5
