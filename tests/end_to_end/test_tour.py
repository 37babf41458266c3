"""The tour in docs/ runs from top to bottom, and the copy kept there is such a run with its outputs."""

import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.commands import HANGS, ROOT, as_users_compile
from tests.helpers.notebooks import code_cells, printed, require_whole_run

TOUR = ROOT / "docs" / "gpt_from_scratch.ipynb"
SHORTENED = {"max_iters=800": "max_iters=40", "(0, 100, 200, 400, 799)": "(0, 39)"}  # updates of the GPT
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


def run_again(kept, tmp_path, monkeypatch, shortened):
    """Run a copy in a folder of its own, the texts of its code replaced as told, and require what the kept run has."""
    folder = tmp_path / "docs"
    folder.mkdir()
    ran = nbformat.read(shutil.copy(TOUR, folder), as_version=4)
    for whole, short in shortened.items():
        assert any(whole in cell.source for cell in code_cells(ran))
        for cell in code_cells(ran):
            cell.source = cell.source.replace(whole, short)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook, as they do for a reader

    NotebookClient(ran, timeout=HANGS, resources={"metadata": {"path": str(folder)}}).execute()

    require_agreement(ran)
    assert (tmp_path / "data" / "shakespeare_char" / "meta.json").exists()
    exact = [[cell for cell in code_cells(n) if "exact" in cell.metadata.get("tags", ())] for n in (kept, ran)]
    assert len(exact[0]) >= 5
    assert printed(exact[0]) == printed(exact[1])  # no rounding and no draw in them: every machine prints the same


def test_it_runs_where_nothing_is_prepared(kept, tmp_path, monkeypatch):
    run_again(kept, tmp_path, monkeypatch, SHORTENED)


@pytest.mark.release
def test_the_whole_of_it_runs_as_a_reader_runs_it(kept, tmp_path, monkeypatch):
    with as_users_compile():
        run_again(kept, tmp_path, monkeypatch, {})
