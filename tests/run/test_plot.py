"""The curves of runs: drawn at their end, and over each other by a command; never a reason for a run to fail."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nanogpt_jax import plot
from nanogpt_jax.cli import train
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run import curves
from tests.helpers.commands import command
from tests.helpers.tiny import TINY, prepare_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    data_dir = prepare_tiny(folder)
    assert train.main([*TINY, f"--data_dir={data_dir}", f"--out_dir={folder / 'run'}", "--max_iters=40"]) == 0
    return folder / "run"


def write_run(folder, entries):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def entries_of(losses, split="train"):
    return [{"step": 10 * i, "split": split, "loss": loss, "learning_rate": 0.1} for i, loss in enumerate(losses)]


def drawn(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_run_leaves_its_curves(made):
    picture = drawn(made / "loss.png")
    assert picture.shape[0] > 500
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # training, validation
        assert (picture == colour).all(-1).sum() > 50


def test_runs_are_drawn_over_each_other_by_their_names(tmp_path):
    a = write_run(tmp_path / "a" / "run", entries_of([4, 3, 2]) + entries_of([4, 2], "val"))
    b = write_run(tmp_path / "b" / "run", entries_of([4, 3.5, 3]))
    c = write_run(tmp_path / "c" / "wide", entries_of([4, 3.5, 3]))
    assert [run.name for run in curves.read_all([a, c])] == ["run", "wide"]
    assert [run.name for run in curves.read_all([a, b])] == [str(a), str(b)]
    losses, _ = curves.loss_figure(curves.read_all([a, c])).axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["run", "wide"]
    assert plot.main([str(a), str(b), f"--png={tmp_path / 'both.png'}"]) == 0
    assert plot.main([str(a), "-o", str(tmp_path / "one.svg")]) == 0
    assert (tmp_path / "one.svg").read_bytes().startswith(b"<?xml")
    assert plot.main([str(a)]) == 0 and (a / "loss.png").exists()


def test_a_run_under_way_or_with_skipped_updates_can_be_drawn(tmp_path):
    run = write_run(tmp_path / "run", entries_of([4, None, 3]))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "spl')
    assert curves.read_curves(run).train.values.tolist() == [4, 3]
    assert plot.main([str(run)]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{}"], "holds no metrics.jsonl (No such file or directory); name the folder of a run"),
        (["{}/empty"], "metrics.jsonl says nothing yet"),
        (["{}/run", "--png={}/loss.jpeg"], "is of no known format"),
        (["{}/run", "--png={}/run"], "is of no known format"),
        ([], "required: RUN"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, argv, message):
    write_run(tmp_path / "run", entries_of([4, 3]))
    write_run(tmp_path / "empty", [])
    with pytest.raises(UserError) as error:
        plot.main([argument.format(tmp_path) for argument in argv])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_figure_that_cannot_be_drawn_leaves_the_run_as_good_as_it_is(made, tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise RuntimeError("no font")

    monkeypatch.setattr(curves, "loss_figure", fails)
    argv = [*TINY, f"--data_dir={made.parent / 'data'}", f"--out_dir={tmp_path / 'run'}", "--max_iters=2"]
    assert train.main(argv) == 0
    err = capsys.readouterr().err
    assert err.endswith(f"(no font); to try again: python -m nanogpt_jax.plot {tmp_path / 'run'}\n")
    assert len(err.splitlines()) == 1


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=200))
def test_smoothing_stays_within_what_it_smooths_and_keeps_a_constant(values):
    values = np.array(values)
    smooth = curves.smoothed(values)
    assert smooth.shape == values.shape
    assert smooth.min() >= values.min() - 1e-9 and smooth.max() <= values.max() + 1e-9


@pytest.mark.parametrize("backend", ["nonsense", "module://not.there"])
def test_no_backend_is_needed_whatever_the_environment_names(made, tmp_path, monkeypatch, backend):
    monkeypatch.setenv("MPLBACKEND", backend)
    done = command("nanogpt_jax/plot.py", made, "--png=curves.png", cwd=tmp_path)
    assert (done.status, done.out, done.err) == (0, "curves.png\n", "")
    assert drawn(tmp_path / "curves.png").size
