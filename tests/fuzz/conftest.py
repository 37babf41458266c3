"""What every case starts from, made once, and compiled programs that are kept from case to case."""

import contextlib
import functools
import itertools
import shutil

import pytest

from nanogpt_jax import convert
from nanogpt_jax.cli import train
from nanogpt_jax.run import loop, start
from tests.helpers.tiny import TINY, prepare_tiny

from .running import end_of


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A data set, a run of three iterations on it, and that run as a ckpt.pt and as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("pristine")
    data_dir = prepare_tiny(folder)
    run = folder / "run"
    short = ("--max_iters=3", "--eval_interval=2", "--save_interval=1", "--bias=True")
    assert end_of(train.main, *TINY, *short, f"--data_dir={data_dir}", f"--out_dir={run}") == 0
    assert end_of(convert.main, run, folder / "ckpt.pt") == 0
    assert end_of(convert.main, run, folder / "hf", "--to=hf") == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Keep the compiled steps of a model, which a process trains but once otherwise."""
    make_train_step, make_eval_step = loop.make_train_step, functools.cache(loop.make_eval_step)
    steps = {}

    def cached_train_step(model, tx, **options):
        key = (model, *options.items())
        steps.setdefault(key, make_train_step(model, tx, **options))
        return steps[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", cached_train_step)
        patch.setattr(loop, "make_eval_step", make_eval_step)
        patch.setattr(start, "_placed", lambda make, mesh, static, *arguments: make(*static, *arguments))
        yield


numbers = itertools.count()


@pytest.fixture(scope="module")
def laid_out(pristine, tmp_path_factory):
    """A function that gives a fresh copy of `pristine` for a case, and takes it away after it."""
    base = tmp_path_factory.mktemp("cases")

    @contextlib.contextmanager
    def copy(*parts):
        folder = base / str(next(numbers))
        folder.mkdir()
        for part in parts:
            source = pristine / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
        yield folder
        shutil.rmtree(folder)

    return copy
