"""A run as it is seen on the terminal: a panel that keeps itself up to date, or plain lines where there is no terminal.

Either is a sink of the run's figures. Nothing that is drawn here changes an update.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from nanogpt_jax.core import sharding
from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.core.sampling import generate
from nanogpt_jax.core.sampling_config import SamplingConfig
from nanogpt_jax.core.train_step import TrainState, purpose_key
from nanogpt_jax.data.prepared import load_tokenizer
from nanogpt_jax.run import hosts
from nanogpt_jax.run.sinks import Sink
from nanogpt_jax.run.start import Start

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LONGEST_TEXT = 160  # tokens
_REFRESHES_PER_SECOND = 1  # drawing takes a few milliseconds, which are missing from training
_MOST_LINES = 8  # of the text


class Lines(Sink):
    """Plain lines, as nanoGPT prints them: a contract with whatever reads them."""

    def iteration(self, line: str) -> None:
        """Take nanoGPT's line about an update."""
        print(line, flush=True)

    def evaluated(self, state: TrainState) -> None:
        """Take the state at an evaluation, which the next update takes away again."""


class Panel(Lines):
    """The step, the losses, the speed, the time left and a text by the model; lines that others print scroll above."""

    def __init__(self, console: Console, start: Start, draw: Callable[[TrainState], str]) -> None:
        from rich import progress
        from rich.live import Live

        settings, run = start.settings, start.run
        self._title, self._draw = settings.out_dir, draw
        self._losses: dict[str, float | None] = {"train": None, "val": run.val_loss, "best": run.best_val_loss}
        self._figures: dict[str, float | None] = {}
        self._text, self._text_step = "", run.step
        self._step = run.step
        columns = (
            progress.BarColumn(None),
            progress.MofNCompleteColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left"),
        )
        self._progress = progress.Progress(*columns, console=console, speed_estimate_period=300, expand=True)
        self._task = self._progress.add_task("", total=settings.max_iters, completed=run.step)
        self._live = Live(
            get_renderable=self._panel,
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            redirect_stderr=sys.stderr.isatty(),  # else it goes to a file of its own, and stays there
        )
        self._live.start(refresh=True)

    def iteration(self, line: str) -> None:
        """Nothing: the panel shows it."""

    def evaluated(self, state: TrainState) -> None:
        self._text, self._text_step = self._draw(state), self._step

    def write(self, step: int, split: str, loss: float, **figures: float | None) -> None:
        self._step = step
        if split == "train":
            self._figures = figures
            step += 1  # the update is made
        if split in self._losses:
            self._losses[split] = loss
        best = self._losses["best"]
        if split == "val" and (best is None or loss < best):
            self._losses["best"] = loss
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        self._live.stop()

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel as Box
        from rich.rule import Rule
        from rich.text import Text

        rate, speed, mfu = (self._figures.get(name) for name in ("learning_rate", "tokens_per_second", "mfu"))
        losses = [(f"{name} loss", None if loss is None else f"{loss:.4f}") for name, loss in self._losses.items()]
        others = [
            ("learning rate", None if rate is None else f"{rate:.2e}"),
            ("tokens/s", None if speed is None else f"{speed:,.0f}"),
            ("MFU", None if mfu is None else f"{mfu:.1%}"),
        ]
        parts: list[RenderableType] = [self._progress, _row(losses), _row(others)]
        if self._text:
            text = Text("\n".join(self._text.splitlines()[:_MOST_LINES]), overflow="fold")
            parts += [Rule(f"text at step {self._text_step}", style="dim", align="left"), text]
        return Box(Group(*parts), title=Text(self._title), title_align="left", border_style="dim")


def _row(cells: list[tuple[str, str | None]]) -> RenderableType:
    """Names and values side by side; what is not known is left out."""
    from rich.text import Text

    known = [Text.assemble((name, "dim"), " ", (value, "bold")) for name, value in cells if value is not None]
    return Text("   ").join(known)


@contextlib.contextmanager
def shown(start: Start, model: nn.Module) -> Iterator[Lines]:
    """The run as it is seen in this process: a panel if its stdout is a terminal that can show one."""
    console = _terminal() if hosts.is_first() else None
    view = Lines() if console is None else Panel(console, start, text_of(start, model))
    with contextlib.closing(view):
        yield view


def _terminal() -> Console | None:
    """The terminal that stdout is, or None if it is none, or one that can't move its cursor."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    class Steady(Console):
        """A console that never hides the cursor: nobody could show it again after a second Ctrl-C, or a SIGKILL."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    console = Steady(highlight=False)
    return console if console.is_interactive else None


def text_of(start: Start, model: nn.Module) -> Callable[[TrainState], str]:
    """A function from a state to a short text, the same prompt continued under the same key at every call.

    The text stays within the block, where a token costs least. Where none can be drawn it says why.
    """
    settings, data = start.settings, start.data
    try:
        tokenizer = load_tokenizer(data.tokenizer)
    except UserError as error:
        why = f"none: {in_short(error)}"
        return lambda state: why
    try:
        prompt = tokenizer.encode("\n")
    except UserError:  # a text of one line
        prompt = np.array(data.val.tokens[:1])
    draw = functools.partial(
        generate,
        model,
        max_new_tokens=max(1, min(settings.block_size, LONGEST_TEXT) - 1),
        config=SamplingConfig(vocab_size=tokenizer.vocab_size),
    )

    def text(state: TrainState) -> str:
        local = _on_one_device((state.params, state.base))
        if local is None:
            return "none: each device holds a part of the parameters"
        trained, base = local
        try:
            with sharding.use_none():
                params = trained if base is None else base.merged(trained)
                drawn = np.asarray(draw(params, prompt, purpose_key(settings.seed, "sample")))
        except jax.errors.JaxRuntimeError as error:  # a run that fits goes on without a text
            return f"none: {in_short(error)}"
        return printable(tokenizer.decode(drawn[0]).strip("\n"))

    return text


def _on_one_device(params: Any) -> Any:
    """A tree of parameters as arrays of one device, if it has them all: nothing is copied."""
    if not all(p.is_fully_replicated for p in jax.tree.leaves(params)):
        return None
    return jax.tree.map(lambda p: p.addressable_data(0), params)


def printable(text: str) -> str:
    """`text` without what would move the cursor."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
