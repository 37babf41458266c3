"""What a sweep is to train: the product of all values that were named, and which of its runs are one program.

A setting that is only a number to the updates is traced, so that runs that differ in such settings alone share one
program; the others, of which shapes or code depend, make one each. The plan is written to `sweep.json` before anything
is trained: a sweep that is killed goes on by it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_at_most
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.files import refused
from nanogpt_jax.run.reports import write_json

PLAN_FILE = "sweep.json"
MOST_RUNS = 10_000
MOST_UPDATES = 10_000_000  # of which a run's learning rates are kept one by one
_FORMAT = 1

MAPPED = (
    "seed", "learning_rate", "muon_learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "decay_lr", "schedule",
    "cooldown_fraction", "weight_decay", "beta1", "beta2", "muon_momentum", "grad_clip", "dropout", "proj_init_scale",
)  # fmt: skip
"""Settings that may differ between the runs of one program."""

VARYING = tuple(
    f.name
    for f in dataclasses.fields(Settings)
    if f.name in (*MAPPED, "batch_size", "gradient_accumulation_steps")
    or (f.metadata["group"] in ("model", "optimizer") and f.name != "rope_scaling")
)
"""Settings that runs of one sweep may differ in."""


@dataclasses.dataclass
class PlannedRun:
    """One run of a sweep.

    Attributes:
        varied: the settings that tell it from the others.
        state: ``waiting``, ``done`` or ``failed``.
        loss: over the whole validation split, of the last weights, in nats per token.
        best_loss: of the weights with the lowest estimate.
        why: it failed, in words.
    """

    varied: dict[str, Any]
    state: str = "waiting"
    loss: float | None = None
    best_loss: float | None = None
    why: str | None = None

    @property
    def name(self) -> str:
        """What its folder is called: ``learning_rate=0.001,seed=0``."""
        return name_of_values(self.varied)


@dataclasses.dataclass
class Plan:
    """A sweep: what all its runs have in common, the runs, and which of them are trained together.

    Attributes:
        settings: of all runs; `out_dir` is the sweep's.
        varied: the values of each setting that varies.
        given: names of the settings that were given one by one: weights that are loaded must have them.
        same_data: whether all runs learn from the batches of the first one's seed.
        runs: in the order of the product, the last setting varying fastest.
        preset: whose settings they are, but for what varies and what was given.
        programs: indices of the runs that are trained side by side; added when it is known how many fit.
        facts: of the process and the machine, and the table of the result.
    """

    settings: dict[str, Any]
    varied: dict[str, list[Any]]
    given: list[str]
    same_data: bool
    preset: str | None
    runs: list[PlannedRun]
    programs: list[list[int]] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def settings_of(self, run: PlannedRun) -> Settings:
        """Its settings, with the folder it has to itself. Raises `UserError` for values that do not go together."""
        folder = Path(self.settings["out_dir"]) / run.name
        return Settings(**{**self.settings, **run.varied, "out_dir": str(folder)})

    def given_of(self, run: PlannedRun) -> dict[str, Any]:
        """The settings that were given one by one."""
        settings = self.settings_of(run)
        return {name: getattr(settings, name) for name in self.given}


def name_of_values(values: Mapping[str, Any]) -> str:
    """Settings as one word: ``learning_rate=0.001,seed=0``."""
    return ",".join(f"{name}={value}" for name, value in values.items())


def planned(
    settings: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
    given: Iterable[str],
    same_data: bool,
    preset: str | None,
) -> Plan:
    """The product of all values. Raises `UserError` if it is too large, or a run of it can't be."""
    count = math.prod(len(values) for values in varied.values())
    if count > MOST_RUNS:
        raise UserError(
            f"{' x '.join(f'{len(values)} of {name}' for name, values in varied.items())} are {count:,} runs, where a "
            f"sweep has {MOST_RUNS:,} at most; name fewer values"
        )
    products = itertools.product(*varied.values())
    runs = [PlannedRun(dict(zip(varied, values, strict=True))) for values in products]
    values_of = {name: list(values) for name, values in varied.items()}
    plan = Plan(dict(settings), values_of, list(given), same_data, preset, runs)
    for run in runs:
        try:
            of_run = plan.settings_of(run)
            require_at_most("max_iters", of_run.max_iters, MOST_UPDATES, "a sweep keeps the rate of every update")
        except UserError as error:
            raise UserError(f"{run.name}: {error}") from None
    return plan


def programs(plan: Plan) -> list[list[int]]:
    """The runs that can be one program each: indices into `plan.runs`, in order."""
    alike: dict[str, list[int]] = {}
    for index, run in enumerate(plan.runs):
        settings = vars(plan.settings_of(run))
        shared = {name: value for name, value in settings.items() if name not in (*MAPPED, "out_dir")}
        # None of either is no code for it, which is another program.
        shared |= {name: settings[name] > 0 for name in ("dropout", "grad_clip")}
        alike.setdefault(json.dumps(shared, sort_keys=True), []).append(index)
    return list(alike.values())


def write_plan(plan: Plan) -> None:
    """`sweep.json`, whole or as it was."""
    document = {"format": _FORMAT, **vars(plan), "runs": [{"name": run.name, **vars(run)} for run in plan.runs]}
    write_json(Path(plan.settings["out_dir"]) / PLAN_FILE, document)


def read_plan(out_dir: Path) -> Plan:
    """The plan of the sweep in `out_dir`. Raises `UserError` if there is none, or it is damaged."""
    path = out_dir / PLAN_FILE
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        begin = pasteable("sweep", "--seed=0..3", out_dir=out_dir)
        raise UserError(f"{out_dir} holds no {PLAN_FILE} ({error.strerror}); begin one with: {begin}") from error
    except OSError as error:
        raise refused(path, error, "read") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON; it is damaged, begin the sweep again in another out_dir") from error
    try:
        if document.pop("format") != _FORMAT:
            raise UserError(f"{path} is of another version of this program; go on with that one")
        runs = [PlannedRun(**{k: v for k, v in run.items() if k != "name"}) for run in document.pop("runs")]
        plan = Plan(runs=runs, **document)
        plan.settings["out_dir"] = str(out_dir)
        for run in plan.runs:
            plan.settings_of(run)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no plan of a sweep; it is damaged, begin the sweep in another out_dir") from error
    return plan
