"""Paths as people type them: relative, with spaces and letters of many alphabets, into models of any size."""

import shutil
from pathlib import Path

import pytest

from nanogpt_jax import cli, convert, lens
from nanogpt_jax.checkpoint import FOLDER
from nanogpt_jax.saving import LARGE

from .test_end_to_end import assert_same_bits, state_of
from .tiny import TINY, prepare_tiny

# A token table of 2,048 x 160 floats is larger than `LARGE`: Orbax keeps it, as it does the tensors of larger models.
WIDE = ("--vocab_size=2048", "--n_embd=160", "--n_head=2", "--data_dir=my data", "--eval_iters=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a space and an umlaut in its name, with a data set and a run of two updates, made from within."""
    folder = tmp_path_factory.mktemp("in a füller")
    prepare_tiny(folder).rename(folder / "my data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.train([*TINY, *WIDE, "--out_dir=out rel", "--max_iters=2"]) == 0
    assert max(path.stat().st_size for path in (folder / "out rel" / FOLDER / "2" / "params").rglob("*")) > LARGE / 2
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of that folder, and the working directory in it."""
    copy = shutil.copytree(made, tmp_path / "ein Füller")
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("named", ["out rel", "./out rel/", "{here}/out rel"])
def test_every_command_takes_a_run_by_any_way_of_writing_its_path(here, named, capsys):
    run = named.format(here=here)
    assert cli.train(["--init_from=resume", f"--out_dir={run}", "--max_iters=3"]) == 0
    tuned = [f"--init_from={run}", "--out_dir=tuned", "--max_iters=1", "--dataset=tiny", "--data_dir=my data"]
    assert cli.train([*TINY[-4:], *tuned]) == 0
    capsys.readouterr()
    assert cli.sample([f"--out_dir={run}", "--start=to be", "--max_new_tokens=4", "--num_samples=1"]) == 0
    assert capsys.readouterr().out.startswith("to be")
    assert convert.main([run, "made/ckpt.pt"]) == 0
    assert convert.main(["made/ckpt.pt", "made/back", "--tokenizer=my data/tiny/meta.json", "--data_dir=my data"]) == 0
    assert_same_bits(state_of(Path("made/back")), state_of(Path(run)))
    assert lens.main([f"--out_dir={run}", "--start=to be", "--html=made/look.html"]) == 0
    assert Path("made/look.html").is_file()
