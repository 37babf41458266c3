"""The folder of a run: which one is meant where none is named, and what becomes of an earlier run in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.files import exists, refused
from nanogpt_jax.run.recipe import CONFIG_FILE
from nanogpt_jax.run.sinks import FIGURE_FILE, METRICS_FILE, TENSORBOARD_FOLDER, WANDB_FOLDER
from nanogpt_jax.weights.checkpoint import FOLDER

PREVIOUS = "previous"
_OF_A_RUN = (FOLDER, METRICS_FILE, CONFIG_FILE, "damaged", TENSORBOARD_FOLDER, WANDB_FOLDER, FIGURE_FILE)
# What is on its way into `previous`: the run before this one, as earlier versions kept it there, and the run itself.
_WAITING = ("previous.single", "previous.moving")


def usual_out_dir(base: Mapping[str, Any], dataset: str | None) -> str:
    """The folder of a run by the settings `base`, where none is named; on another data set it carries that one's name.

    So that one preset on two data sets makes two runs: ``out-gpt-dev`` and ``out-gpt-dev-mine``.
    """
    usual = {name: base.get(name, getattr(Settings, name)) for name in ("out_dir", "dataset")}
    if dataset is None or dataset == usual["dataset"]:
        return usual["out_dir"]
    return "-".join((usual["out_dir"], *(part for part in Path(dataset).parts if part not in ("/", ".", ".."))))


def newest_run() -> str:
    """The folder ./out* with the youngest settings file. Raises `UserError` if there is none."""
    written, closed = {}, []
    for folder in Path().glob("out*"):
        try:
            written[folder] = (folder / CONFIG_FILE).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # such as another user's
            closed.append(refused(folder, error, "looked at"))
    if not written and closed:
        raise closed[0]
    if not written:
        raise UserError(
            f"there is no run in ./out*; train one with {pasteable('train')}, or name it with --out_dir=DIR"
        )
    return str(max(written, key=written.__getitem__))


def set_previous_run_aside(out_dir: Path, kept: Sequence[str] = _OF_A_RUN, what: str = "a run") -> None:
    """Move what an earlier run left in `out_dir` to `out_dir/previous/N`, the highest N being the latest.

    `kept` are the names of what it may have left. Nothing is ever deleted, and a move that was cut short goes on.
    """
    aside, (single, moving) = out_dir / PREVIOUS, (out_dir / name for name in _WAITING)
    there = [out_dir / name for name in kept if exists(out_dir / name)]
    if not there and not any(exists(path) for path in (single, moving)):
        return
    if any(exists(aside / name) for name in kept) and not exists(single):
        aside.rename(single)
    aside.mkdir(exist_ok=True)
    if there:
        moving.mkdir(exist_ok=True)
        for path in there:
            path.rename(moving / path.name)
    for waiting in (path for path in (single, moving) if exists(path)):
        number = 1 + max((int(path.name) for path in aside.iterdir() if path.name.isdecimal()), default=0)
        waiting.rename(aside / str(number))
    print(f"{out_dir} held {what}: it is in {aside / str(number)} now", flush=True)
