"""Checkpoints: what is saved comes back to the bit, the best and the latest stay, and damage is named."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from nanogpt_jax.checkpoint import FOLDER, Checkpoints, RunDocument
from nanogpt_jax.config import GPTConfig, preset
from nanogpt_jax.errors import UserError
from nanogpt_jax.loading import open_run, open_weights, stored_settings
from nanogpt_jax.model import Bigram
from nanogpt_jax.optimizer import make_optimizer
from nanogpt_jax.training import init_params, init_state

SETTINGS = preset("bigram")
TX = make_optimizer(SETTINGS)


def bigram_state(vocab_size=7, seed=0):
    model = Bigram(GPTConfig(vocab_size=vocab_size))
    return jax.jit(lambda: init_state(init_params(model, seed), TX, seed))()


def document(step, **facts):
    tokenizer = {"type": "char", "characters": "abcdefg"}
    return RunDocument(vars(SETTINGS), tokenizer, vocab_size=7, step=step, **facts)


@pytest.fixture
def saved(tmp_path):
    """A run's folder with checkpoints at 10 (the best), 20, 30 and 40."""
    checkpoints = Checkpoints(tmp_path)
    for step, loss in ((10, 1.0), (20, 3.0), (30, 2.0), (40, 2.5)):
        checkpoints.save(bigram_state(seed=step), document(step, best_val_loss=1.0), loss)
    checkpoints.close()
    return tmp_path


def test_the_two_latest_and_the_best_are_kept(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    assert sorted(int(path.name) for path in (saved / FOLDER).iterdir() if path.is_dir()) == [10, 30, 40]
    assert (checkpoints.best(), checkpoints.latest()) == (10, 40)


def test_a_state_and_its_document_come_back_as_they_were(saved):
    checkpoints, step, run = open_run(saved)
    assert step == 40
    assert run == document(40, best_val_loss=1.0)
    assert stored_settings(run) == SETTINGS
    like = jax.eval_shape(bigram_state)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.state(step, like), bigram_state(seed=40))


def test_without_an_evaluation_the_newest_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(bigram_state(), document(step), None)
    checkpoints.wait()
    assert (checkpoints.best(), checkpoints.latest()) == (3, 3)
    checkpoints.close()


def test_a_checkpoint_of_other_shapes_is_refused_by_the_tensors_name(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    with pytest.raises(UserError, match=r"tensor wte/embedding has shape \(7, 7\) where the model has \(9, 9\)"):
        checkpoints.state(40, jax.eval_shape(lambda: bigram_state(9)))


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def rewrite_document(folder, **changes):
    path = folder / FOLDER / "40" / "run" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate_tensors(folder):
    for path in (folder / FOLDER / "40").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])


DAMAGE = {
    "empty folder": lambda folder: [path.unlink() for path in (folder / FOLDER).rglob("*") if path.is_file()],
    "truncated tensors": truncate_tensors,
    "no document": lambda folder: (folder / FOLDER / "40" / "run" / "metadata").unlink(),
    "document of text": lambda folder: (folder / FOLDER / "40" / "run" / "metadata").write_text("hello"),
    "another format": lambda folder: rewrite_document(folder, format=99),
    "a field too many": lambda folder: rewrite_document(folder, surprise=1),
    "settings of another type": lambda folder: rewrite_document(folder, settings=[1]),
    "a setting out of range": lambda folder: rewrite_document(folder, settings={"n_layer": -1}),
    "an unknown setting": lambda folder: rewrite_document(folder, settings={"n_experts": 8}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line(saved, damage):
    damage(saved)
    with pytest.raises(UserError) as error:
        checkpoints, step, run = open_run(saved)
        stored_settings(run)
        checkpoints.state(step, jax.eval_shape(bigram_state))
    assert len(str(error.value).splitlines()) == 1
    assert "checkpoint" in str(error.value) or "n_layer" in str(error.value)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        open_weights(str(tmp_path))
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(UserError, match="no finished checkpoint"):
        open_weights(str(tmp_path))


def test_the_document_is_all_json(saved):
    text = (saved / FOLDER / "40" / "run" / "metadata").read_text()
    assert json.loads(text)["settings"] == dataclasses.asdict(SETTINGS)
