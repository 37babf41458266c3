"""The notebooks for a TPU and a GPU run from top to bottom where there is neither, shortened by a variable.

They are kept without outputs: no chip has run them yet.
"""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.commands import HANGS, ROOT
from tests.helpers.notebooks import code_cells, printed, require_whole_run

KINDS = ("tpu", "gpu")
SHORTER = "--max_iters=21 --eval_iters=1 --n_layer=1 --n_head=1 --n_embd=64 --block_size=64 --batch_size=4"


def read(kind):
    return nbformat.read(ROOT / "docs" / f"on_a_{kind}.ipynb", as_version=4)


def in_both(notebook):
    return [cell.source for cell in code_cells(notebook) if "same" in cell.metadata.get("tags", ())]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_has_no_outputs_and_opens_with_the_chip(kind):
    kept = read(kind)
    nbformat.validate(kept)
    assert [(cell.execution_count, cell.outputs) for cell in code_cells(kept)] == [(None, [])] * 7
    assert kept.metadata.accelerator == kind.upper()
    buttons = re.findall(r"^\[!\[.*\]\(.*\)\]\((.*)\)$", kept.cells[0].source, re.M)
    assert buttons == ["https://colab.research.google.com/github", "https://www.kaggle.com/code/new"]
    assert f"docs/on_a_{kind}.ipynb" in kept.cells[0].source


def run(notebook, folder, data_dir, monkeypatch):
    """What its cells print in a checkout of which this one's files are a part."""
    (folder / "docs").mkdir()
    shutil.copytree(data_dir / "shakespeare_char", folder / "data" / "shakespeare_char")
    for name in ("nanogpt_jax", "train.py", "sample.py"):
        (folder / name).symlink_to(ROOT / name)
    for name, value in {"PYTHONPATH": str(ROOT), "SHORTER": SHORTER, "JAX_PLATFORMS": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    NotebookClient(notebook, timeout=HANGS, resources={"metadata": {"path": str(folder / "docs")}}).execute()
    require_whole_run(notebook, figures=1)
    return printed(code_cells(notebook))


def require_all_but_parity(text, kind):
    assert f"cpu: 1 x cpu; matrix products in float32\nJAX finds no {kind.upper()} here" in text
    assert "1 x cpu, 1 host, mesh data:1; float32 matrix products, xla attention" in text
    assert re.search(r"^final val loss \d\.\d{4} \(whole split, 111539 tokens\)$", text, re.M)
    assert re.search(r"^profile of updates 10 to 19: profile$", text, re.M)
    assert "ROMEO:" in text
    assert len(re.findall(r"^ *\d+\.\d ms +\d+%  \S", text, re.M)) == 10


def test_the_tpus_runs_where_there_is_none(data_dir, tmp_path, monkeypatch):
    text = run(read("tpu"), tmp_path, data_dir, monkeypatch)
    require_all_but_parity(text, "tpu")
    assert "all tolerances hold" in text


def test_the_gpus_runs_where_there_is_none(data_dir, tmp_path, monkeypatch):
    """But for the comparison with PyTorch, the longest: that cell is the TPU's, which is run."""
    notebook = read("gpu")
    assert len(in_both(notebook)) == 1 and in_both(notebook) == in_both(read("tpu"))
    notebook.cells = [cell for cell in notebook.cells if "same" not in cell.metadata.get("tags", ())]
    require_all_but_parity(run(notebook, tmp_path, data_dir, monkeypatch), "gpu")


# Stand-ins: git makes the folder that it is told to, and pip says what it was asked for.
PROGRAMS = {
    "bin/git": '#!/bin/sh\nmkdir "$4" && echo "$1 $3"\n',
    "bin/nvidia-smi": '#!/bin/sh\necho "$DRIVER"\n',
    "modules/pip/__init__.py": "",
    "modules/pip/__main__.py": "import sys\nprint(*sys.argv[1:])\n",
}


def installed(kind, folder, **variables):
    """What the first cell says in a folder without a checkout, by a Python that has no packages."""
    for name, text in PROGRAMS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "cell.py").write_text(code_cells(read(kind))[0].source)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-S", "-u", "cell.py"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(folder / "modules"), **variables},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "driver", "packages"),
    [("tpu", "", ".[tpu]"), ("gpu", "580.65.06", ". jax[cuda13]"), ("gpu", "550.54.15", ". jax[cuda12]")],
)
def test_where_there_is_no_checkout_one_is_cloned_and_installed(kind, driver, packages, tmp_path):
    address = "https://example.org/it.git"
    said = f"clone {address}\ninstall -q -e {packages}\nin nanogpt-jax\n"
    assert installed(kind, tmp_path, REPOSITORY=address, DRIVER=driver) == (0, said)


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_that_is_missing_is_asked_for(kind, tmp_path):
    asked = "fill in REPOSITORY above: the address of the project, as `git clone` takes it\n"
    assert installed(kind, tmp_path) == (1, asked)
