"""A run that version 0.1.0 wrote, in the folder beside this file: its loss, text and next updates stay as they were."""

import shutil
from pathlib import Path

import pytest

from nanogpt_jax.cli import sample, train
from tests.helpers.tiny import prepare_tiny

WRITTEN = Path(__file__).parent / "written_by_0.1.0"


@pytest.fixture
def run(tmp_path, monkeypatch):
    prepare_tiny(tmp_path)
    shutil.copytree(WRITTEN, tmp_path / "run")
    monkeypatch.chdir(tmp_path)


def final_loss(out):
    [line] = [line for line in out.splitlines() if line.startswith("final val loss")]
    return float(line.split()[3])


def test_its_loss_is_what_it_was(run, capsys):
    assert train.main(["--init_from=run", "--eval_only", "--dataset=tiny", "--accelerator=cpu"]) == 0
    assert final_loss(capsys.readouterr().out) == pytest.approx(2.3306, abs=1e-4)


def test_its_text_is_what_it_was(run, capsys):
    sample.main(["--out_dir=run", "--start=to", "--num_samples=1", "--max_new_tokens=60", "--accelerator=cpu"])
    assert capsys.readouterr().out.startswith("to e,s ttt ir   ths, ahthtt: tr,t   ootto ,e ttst  ni a ttinhb\n")


def test_it_goes_on_as_its_own_version_went_on(run, capsys):
    assert train.main(["--init_from=resume", "--out_dir=run", "--max_iters=25"]) == 0
    assert final_loss(capsys.readouterr().out) == pytest.approx(2.2622, abs=1e-4)
