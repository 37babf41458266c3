"""Checkpoints: what is saved comes back to the bit, the best and the latest stay, damage is named and passed over."""

import dataclasses
import errno
import json
import os
import shutil
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params, init_state
from nanogpt_jax.run.presets import preset
from nanogpt_jax.weights.checkpoint import FOLDER, RunDocument, best, newest
from nanogpt_jax.weights.loading import open_run, open_weights, stored_settings
from nanogpt_jax.weights.saving import CheckpointWriter
from tests.helpers.refusals import largest_file

SETTINGS = preset("bigram")
TX = make_optimizer(SETTINGS)


def bigram_state(vocab_size=7, seed=0):
    model = Bigram(GPTConfig(vocab_size=vocab_size))
    return jax.jit(lambda: init_state(init_params(model, seed), TX, seed))()


def document(step, **facts):
    tokenizer = {"type": "char", "characters": "abcdefg"}
    return RunDocument(vars(SETTINGS), tokenizer, vocab_size=7, step=step, **facts)


def write(folder, losses, **options):
    """Checkpoints at these steps with these validation losses, each of a state of its own."""
    checkpoints = CheckpointWriter(folder, **options)
    for step, loss in losses.items():
        checkpoints.save(bigram_state(seed=step), document(step, val_loss=loss))
    checkpoints.close()


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / FOLDER).iterdir() if path.name.isdigit())


def assert_is_whole(checkpoint, step):
    assert checkpoint.run.step == step
    like = jax.eval_shape(bigram_state)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.state(like), bigram_state(seed=step))


# Arrays of 100 bytes and more are large: then Orbax's own files hold them, as they do for a large model.
LARGE = {"small arrays": {}, "small and large arrays": {"large": 100}}


@pytest.fixture(scope="module", params=LARGE.values(), ids=LARGE)
def made(request, tmp_path_factory):
    """A run's folder with checkpoints at 10 (the best), 20, 30 and 40."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, {10: 1.0, 20: 3.0, 30: 2.0, 40: 2.5}, **request.param)
    return folder


@pytest.fixture
def saved(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_the_two_latest_and_the_best_are_kept(saved):
    assert steps_in(saved) == [10, 30, 40]
    assert (best(saved).run.step, newest(saved).run.step) == (10, 40)


def test_a_state_and_its_document_come_back_as_they_were(saved):
    checkpoint = open_run(saved)
    assert checkpoint.run == document(40, val_loss=2.5)
    assert stored_settings(checkpoint.run) == SETTINGS
    assert_is_whole(checkpoint, 40)


def test_without_an_evaluation_the_newest_is_the_best(tmp_path):
    write(tmp_path, {1: None, 2: None, 3: None})
    assert steps_in(tmp_path) == [2, 3]
    assert (best(tmp_path).run.step, newest(tmp_path).run.step) == (3, 3)


def test_a_resumed_run_keeps_the_best_of_the_whole_run(saved):
    checkpoints = CheckpointWriter(saved, newest(saved))
    for step in (50, 60):
        checkpoints.save(bigram_state(seed=step), document(step, val_loss=1.5))
    checkpoints.close()
    assert steps_in(saved) == [10, 50, 60]


def test_what_a_killed_save_left_is_removed(saved):
    (saved / FOLDER / "45.orbax-checkpoint-tmp" / "files").mkdir(parents=True)
    assert newest(saved).run.step == 40
    checkpoints = CheckpointWriter(saved, newest(saved))
    checkpoints.save(bigram_state(seed=45), document(45))
    checkpoints.close()
    assert sorted(path.name for path in (saved / FOLDER).iterdir()) == ["10", "40", "45"]


def test_a_checkpoint_of_other_shapes_is_refused_by_the_tensors_name(saved):
    with pytest.raises(UserError, match=r"tensor wte/embedding has shape \(7, 7\) of float32 where .* \(9, 9\)"):
        newest(saved).state(jax.eval_shape(lambda: bigram_state(9)))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def test_a_reader_that_breaks_on_whole_files_is_our_fault_and_says_so(saved, monkeypatch):
    checkpoint = newest(saved)

    def broken(*arguments):
        raise AttributeError("'NoneType' object has no attribute 'tree'")

    monkeypatch.setattr("nanogpt_jax.weights.checkpoint.safetensors.load_file", broken)
    with pytest.raises(RunFailed, match=r"is whole, .* no attribute 'tree'.* a fault of nanogpt-jax .* keep them"):
        checkpoint.state(jax.eval_shape(bigram_state))
    flip(saved / FOLDER / "40" / "files" / "params.safetensors")
    with pytest.raises(UserError, match=r"is damaged \(files/params.safetensors is not what was saved\)"):
        checkpoint.state(jax.eval_shape(bigram_state))


def test_a_relative_path_reads_what_an_absolute_one_does_wherever_the_program_goes_after(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    checkpoint = newest(Path(saved.name))
    monkeypatch.chdir("/")
    assert_is_whole(checkpoint, 40)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, zero, flip, remove])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(saved, damage, capsys):
    newest_folder = saved / FOLDER / "40"
    others = {"commit_success.txt", "_CHECKPOINT_METADATA"}  # Orbax's, and not read
    files = [path for path in newest_folder.rglob("*") if path.is_file() and path.name not in others]
    for path in files:
        whole = path.read_bytes()
        damage(path)
        assert_is_whole(newest(saved), 30)
        said = capsys.readouterr().err
        assert str(newest_folder) in said and len(said.splitlines()) == 1
        path.write_bytes(whole)
    assert_is_whole(newest(saved), 40)


def test_damage_to_the_best_leaves_the_next_best(saved, capsys):
    flip(saved / FOLDER / "10" / "files" / "params.safetensors")
    assert best(saved).run.step == 30
    assert "is damaged" in capsys.readouterr().err


def test_a_run_that_goes_on_from_before_the_damage_sets_it_aside_and_writes_its_own(saved):
    flip(saved / FOLDER / "40" / "files" / "run.json")
    checkpoints = CheckpointWriter(saved, newest(saved))
    assert (saved / "damaged" / "40.1" / "files" / "run.json").is_file()
    checkpoints.save(bigram_state(seed=40), document(40, val_loss=2.5))
    checkpoints.close()
    assert_is_whole(newest(saved), 40)


def test_where_all_are_damaged_it_is_one_line(saved):
    for step in steps_in(saved):
        shutil.rmtree(saved / FOLDER / str(step) / "files")
    with pytest.raises(UserError, match=r"^[^\n]*holds no checkpoint that is whole[^\n]*$"):
        open_run(saved)


def rewrite_document(folder, **changes):
    """Make the newest checkpoint one of a program that says something else, all its sums right."""
    files = folder / FOLDER / "40" / "files"
    text = json.dumps({**json.loads((files / "run.json").read_text()), **changes}).encode()
    (files / "run.json").write_bytes(text)
    sums = json.loads((files / "sums.json").read_text())
    (files / "sums.json").write_text(json.dumps({**sums, "run.json": f"{zlib.crc32(text):08x}"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "is not a checkpoint this version reads"),
        ({"surprise": 1}, "run document of another program"),
        ({"step": "x"}, "run document of another program"),
        ({"settings": [1]}, "run document of another program"),
        ({"settings": {"n_layer": -1}}, "n_layer=-1"),
        ({"settings": {"n_experts": 8}}, "n_experts"),
    ],
)
def test_a_document_of_another_program_is_one_line(saved, changes, message):
    rewrite_document(saved, **changes)
    with pytest.raises(UserError) as error:
        stored_settings(open_run(saved).run)
    assert len(str(error.value).splitlines()) == 1
    assert message in str(error.value)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        open_weights(str(tmp_path))
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(UserError, match="no finished checkpoint"):
        open_weights(str(tmp_path))


def test_the_document_is_all_json(saved):
    text = (saved / FOLDER / "40" / "files" / "run.json").read_text()
    assert json.loads(text)["settings"] == dataclasses.asdict(SETTINGS)


def test_a_save_that_fails_is_told_and_leaves_those_before_it(saved, monkeypatch):
    checkpoints = CheckpointWriter(saved, newest(saved))
    monkeypatch.setattr("os.fsync", full_disk)
    checkpoints.save(bigram_state(seed=50), document(50))
    with pytest.raises(RunFailed, match=r"iteration 50 could not be saved .*No space left on device"):
        checkpoints.wait()
    checkpoints.close()
    assert steps_in(saved) == [10, 30, 40]
    assert_is_whole(newest(saved), 40)


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_save_that_fails_is_told_once_whatever_else_was_being_written(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    noise = np.random.default_rng(0).normal(size=(30, 90_000)).astype(np.float32)  # of no use to a compressor
    state = bigram_state().replace(params={f"a{i}": row for i, row in enumerate(noise)})
    checkpoints = CheckpointWriter(tmp_path, large=100)
    checkpoints.save(bigram_state(), document(1))
    checkpoints.wait()
    with largest_file(100_000), pytest.raises(RunFailed, match="iteration 2 could not be saved"):
        checkpoints.save(state, document(2))
        checkpoints.wait()
    checkpoints.close()
    assert told == []
    sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))  # the last of them, late
    assert told == []
    others = SimpleNamespace(exc_value=RuntimeError("another matter"))
    sys.unraisablehook(others)
    assert told == [others]


def test_saving_leaves_nothing_of_its_own_behind_in_the_interpreter(tmp_path):
    hooks = sys.excepthook, sys.unraisablehook
    write(tmp_path, {1: 1.0}, large=100)
    assert (sys.excepthook, sys.unraisablehook) == hooks
