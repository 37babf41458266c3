"""The tour in docs/ runs from top to bottom, and the copy kept there is such a run with its outputs."""

import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.commands import HANGS, ROOT

TOUR = ROOT / "docs" / "gpt_from_scratch.ipynb"
AGREEMENT = re.compile(r"^(?:trained by hand|by the package) +(\d\.\d{4}) +(\d\.\d{4})$", re.M)


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(TOUR, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells):
    return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


def require_whole_run(notebook):
    cells = code_cells(notebook)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs} == {"stream", "display_data"}  # so no "error"
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}  # and no warnings
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    losses = AGREEMENT.findall(printed(cells))
    assert len(losses) == 2
    assert all(by_hand == by_the_package for by_hand, by_the_package in losses)


def test_what_is_kept_is_a_whole_run_and_small(kept):
    nbformat.validate(kept)
    require_whole_run(kept)
    assert TOUR.stat().st_size < 600_000


def test_it_runs_where_nothing_is_prepared(kept, tmp_path, monkeypatch):
    folder = tmp_path / "docs"
    folder.mkdir()
    ran = nbformat.read(shutil.copy(TOUR, folder), as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook, as they do for a reader

    NotebookClient(ran, timeout=HANGS, resources={"metadata": {"path": str(folder)}}).execute()

    require_whole_run(ran)
    assert (tmp_path / "data" / "shakespeare_char" / "meta.json").exists()
    exact = [[cell for cell in code_cells(n) if "exact" in cell.metadata.get("tags", ())] for n in (kept, ran)]
    assert len(exact[0]) >= 5
    assert printed(exact[0]) == printed(exact[1])  # no rounding and no draw in them: every machine prints the same
