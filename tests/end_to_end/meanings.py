"""What a documented command asks for, found by its own `main` up to where its work begins.

Whether its flags exist and their values are allowed, its preset or file is one, its data set and the checkout beside it
are there, its model fits its mesh: all that is refused before anything is computed.
"""

from __future__ import annotations

import importlib
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.addresses import is_address
from nanogpt_jax.run.mesh import mesh_shape, require_fit

# A program: the module whose `main` is the command, and the functions with which its work begins.
WORK = {
    "train.py": ("nanogpt_jax.cli.train", ["nanogpt_jax.run.loop.train"]),
    "sample.py": ("nanogpt_jax.cli.sample", ["nanogpt_jax.cli.texts.sample_text", "nanogpt_jax.cli.texts.chat_text"]),
    "nanogpt_jax.compare": ("nanogpt_jax.compare.command", ["nanogpt_jax.compare.comparison.build_model"]),
    "nanogpt_jax.evaluate": ("nanogpt_jax.evaluate.command", ["nanogpt_jax.evaluate.models.evaluate"]),
    "nanogpt_jax.bench": (
        "nanogpt_jax.bench.command",
        [
            "nanogpt_jax.bench.tasks.measure_training",
            "nanogpt_jax.bench.tasks.measure_breakdown",
            "nanogpt_jax.bench.tasks.measure_sampling",
            "nanogpt_jax.bench.tasks.measure_record",
            "nanogpt_jax.bench.tasks.device_of",
            "nanogpt_jax.bench.growth.measure_growth",
        ],
    ),
    "nanogpt_jax.sweep": ("nanogpt_jax.sweep", ["nanogpt_jax.run.sweep.run_sweep", "nanogpt_jax.sweep.read_plan"]),
    "tests.torture": ("tests.torture.__main__", ["tests.torture.__main__.torture"]),
    "tests.torture.cost": ("tests.torture.cost", ["tests.torture.cost.seconds_by_step"]),
    "tests.seeing_cost": ("tests.seeing_cost", ["tests.seeing_cost.take_turns"]),
}
_DEVICE = ("run.accelerator", "compare.comparison")  # where commands choose theirs


class Begun(Exception):
    """A command would now do its work."""


def program_of(command: str) -> str:
    """The script or module that a command runs, as `WORK` names it."""
    found = re.match(r"(?:\S+ -m |\S+ )(\S+)", command)
    return found[1] if found else command


def require_meaning(command: str, folder: Path) -> None:
    """Fail unless the command, typed in the folder, comes as far as its work. Raises the command's `UserError`."""
    module, work = WORK[program_of(command)]
    words = shlex.split(command.partition(" | ")[0])
    argv = words[words.index(program_of(command)) + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module, *argv])
        for place in _DEVICE:
            patch.setattr(f"nanogpt_jax.{place}.use_accelerator", lambda *_: "cpu")
        patch.setattr("nanogpt_jax.run.many.a_device_for_each_core", lambda: None)
        for function in work:
            patch.setattr(function, _begin)
        main = importlib.import_module(module).main
        with pytest.raises(Begun):
            main(argv) if module.startswith("nanogpt_jax") else main()
    for reference in re.findall(r"--reference=(\S+)", command):
        assert (folder / reference).is_dir(), command


def _begin(*arguments: Any, **_: Any) -> NoReturn:
    """In place of the work: what only the beginning of training would refuse."""
    if arguments and isinstance(settings := arguments[0], Settings):
        assert is_address(settings.data_dir) or Path(settings.data_dir, settings.dataset).is_dir(), settings.dataset
        if settings.mesh != "auto":
            devices = math.prod(map(int, re.findall(r":(\d+)", settings.mesh)))
            require_fit(mesh_shape(settings.mesh, devices), settings)
    raise Begun
