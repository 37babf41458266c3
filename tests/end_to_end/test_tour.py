"""The tour in docs/ runs from top to bottom, and the copy kept there is such a run with its outputs."""

import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.commands import HANGS, ROOT
from tests.helpers.notebooks import code_cells, printed, require_whole_run

TOUR = ROOT / "docs" / "gpt_from_scratch.ipynb"
AGREEMENT = re.compile(r"^(?:trained by hand|by the package) +(\d\.\d{4}) +(\d\.\d{4})$", re.M)


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(TOUR, as_version=4)


def require_agreement(notebook):
    require_whole_run(notebook, figures=4)
    losses = AGREEMENT.findall(printed(code_cells(notebook)))
    assert len(losses) == 2
    assert all(by_hand == by_the_package for by_hand, by_the_package in losses)


def test_what_is_kept_is_a_whole_run_and_small(kept):
    nbformat.validate(kept)
    require_agreement(kept)
    assert TOUR.stat().st_size < 600_000


def test_it_runs_where_nothing_is_prepared(kept, tmp_path, monkeypatch):
    folder = tmp_path / "docs"
    folder.mkdir()
    ran = nbformat.read(shutil.copy(TOUR, folder), as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook, as they do for a reader

    NotebookClient(ran, timeout=HANGS, resources={"metadata": {"path": str(folder)}}).execute()

    require_agreement(ran)
    assert (tmp_path / "data" / "shakespeare_char" / "meta.json").exists()
    exact = [[cell for cell in code_cells(n) if "exact" in cell.metadata.get("tags", ())] for n in (kept, ran)]
    assert len(exact[0]) >= 5
    assert printed(exact[0]) == printed(exact[1])  # no rounding and no draw in them: every machine prints the same
