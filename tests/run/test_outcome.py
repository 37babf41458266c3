"""A run says what its best and its last weights are worth, ends when it has learnt enough, and lets users choose."""

import random
import re
import shutil

import jax
import numpy as np
import pytest

from nanogpt_jax import convert
from nanogpt_jax.cli import train
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.cli.texts import open_model
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.dataset import open_tokens
from nanogpt_jax.run import loop
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights.checkpoint import FOLDER, best, newest
from nanogpt_jax.weights.loading import open_weights
from tests.helpers.commands import metrics_of
from tests.helpers.states import assert_same_bits, state_of
from tests.helpers.tiny import TINY, prepare_tiny

# Letters at random: what is learnt of them but their frequencies is learnt by heart.
NOISE = "".join(random.Random(1).choices("abcdefgh", k=900))
OVERFITS = ("--n_embd=64", "--batch_size=32", "--dropout=0", "--learning_rate=3e-2", "--max_iters=120")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    return prepare_tiny(folder, NOISE, times=1)


def test_a_small_split_is_read_once_and_not_filled_up_to_a_large_ones_step(data_dir):
    file = open_tokens(data_dir / "tiny" / "val.bin", 8, 8)
    read = []

    def loss_of(batch, weights):
        read.append(weights)
        return weights.sum()

    assert loop.whole_split_loss(loss_of, file, 8) == (1.0, len(file.tokens) - 1)
    [weights] = read
    assert weights.shape == (-(-(len(file.tokens) - 1) // 8), 8)


@pytest.fixture(scope="module")
def overfitted(data_dir, tmp_path_factory):
    """A run whose best weights lie behind it, and all that it said."""
    run = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *words, **options: said.append(" ".join(map(str, words))))
        assert train.main([*TINY, *OVERFITS, f"--data_dir={data_dir}", f"--out_dir={run}"]) == 0
    return run, "\n".join(said)


def final_loss(out):
    return re.search(r"^final val loss ([\d.]+) \(whole split, \d+ tokens\)$", out, re.M)[1]


def losses(run, split):
    return {line["step"]: line["loss"] for line in metrics_of(run) if line["split"] == split}


def test_the_end_tells_both_losses_and_where_validation_rose(overfitted):
    run, said = overfitted
    last = losses(run, "val_whole")[120]
    told = re.search(
        r"^the last weights, of iteration 120: (.*); the best by the estimates, of iteration (\d+): (.*); --",
        said,
        re.M,
    )
    val, train = losses(run, "val"), losses(run, "train_eval")
    lowest = min((step for step in val if step > 0), key=val.get)
    assert told[1] == final_loss(said) == f"{last:.4f}" and int(told[2]) == lowest == best(run).run.step < 120
    end = metrics_of(run)[-1]
    assert (end["best_step"], f"{end['best_loss']:.4f}") == (lowest, told[3]) and end["best_loss"] < last
    rose = f"rose from {val[lowest]:.4f} to {val[120]:.4f} while the training loss fell from {train[lowest]:.4f} to"
    assert f"from iteration {lowest} to 120 the validation loss {rose} {train[120]:.4f}" in said


def test_a_run_whose_last_weights_are_the_best_says_so(data_dir, tmp_path, capsys):
    flags = (*TINY, "--learning_rate=1e-5", "--max_iters=2", f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}")
    assert train.main(flags) == 0
    out = capsys.readouterr().out
    assert f"the last weights, of iteration 2, are the best: {final_loss(out)}" in out and "rose" not in out


@pytest.mark.parametrize("which", ["best", "last"])
def test_which_weights_are_taken_everywhere(overfitted, data_dir, tmp_path, capsys, which):
    run, _ = overfitted
    end = metrics_of(run)[-1]
    loss = end["best_loss"] if which == "best" else end["loss"]
    where = (f"--data_dir={data_dir}", "--dataset=tiny", f"--which={which}", "--accelerator=cpu")
    assert train.main([f"--init_from={run}", "--eval_only", *where]) == 0
    assert final_loss(capsys.readouterr().out) == f"{loss:.4f}"
    assert train.main(["--init_from=resume", f"--out_dir={run}", "--eval_only", *where]) == 0
    assert final_loss(capsys.readouterr().out) == f"{loss:.4f}"
    assert (
        train.main([f"--init_from={run}", f"--out_dir={tmp_path / 'on'}", *where, "--max_iters=0", "--eval_iters=1"])
        == 0
    )
    assert final_loss(capsys.readouterr().out) == f"{loss:.4f}"

    step = best(run).run.step if which == "best" else newest(run).run.step
    for name in ("ckpt.pt", "hf"):
        assert convert.main([str(run), str(tmp_path / name), f"--which={which}"]) == 0
        assert f"after {step} iterations" in capsys.readouterr().out

    weights, _ = open_model(SampleSettings(out_dir=str(run), which=which))  # as sample.py and the lens do
    expected = open_weights(str(run), which=which)
    assert weights.settings == expected.settings
    same = open_weights(str(tmp_path / "ckpt.pt"))
    model = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
    jax.tree.map(np.testing.assert_array_equal, weights.load(model), same.load(model))


def test_a_run_goes_on_from_its_last_weights_only(overfitted):
    run, _ = overfitted
    with pytest.raises(UserError, match=rf"^which=best is no place .* python .*train\.py --init_from={run} --out_dir="):
        train.main(["--init_from=resume", f"--out_dir={run}", "--which=best", "--accelerator=cpu"])


def test_patience_ends_a_run_and_is_part_of_its_progress(overfitted, data_dir, tmp_path, capsys):
    lowest = best(overfitted[0]).run.step
    run = tmp_path / "run"
    flags = (*TINY, *OVERFITS, "--patience=2", "--save_interval=10", f"--data_dir={data_dir}", f"--out_dir={run}")
    assert train.main(flags) == 0
    out = capsys.readouterr().out
    end = newest(run).run.step
    assert best(run).run.step == lowest and end == lowest + 2 * 20 < 120
    assert f"patience=2: no better validation loss in 2 evaluations, so the run ends at iteration {end} of 120" in out
    shutil.rmtree(shutil.copytree(run, tmp_path / "cut") / FOLDER / str(end))  # as if it had been killed before
    resume = ("--init_from=resume", "--accelerator=cpu")
    assert train.main([*resume, f"--out_dir={tmp_path / 'cut'}"]) == 0
    assert_same_bits(state_of(tmp_path / "cut"), state_of(run))
    capsys.readouterr()
    assert train.main([*resume, f"--out_dir={run}", "--patience=none", f"--max_iters={end + 5}"]) == 0
    assert newest(run).run.step == end + 5
