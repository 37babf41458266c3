"""The command that trains: what the arguments ask for, the device, the run, and how to go on."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nanogpt_jax.cli.entry import OK
from nanogpt_jax.cli.flags import tell
from nanogpt_jax.cli.settings import chosen, settings_parser
from nanogpt_jax.core.config import ACCELERATORS, PLACEMENT_SETTINGS, Settings
from nanogpt_jax.core.limits import coerced, require_choice
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.run.presets import PRESETS, name_of, usual

_DESCRIPTION = f"""\
Train a GPT.

  {{train}}                           the model that suits this machine, on Tiny Shakespeare
  {{train}} gpt_dev --max_iters=1000  a preset, with a setting changed
  {{train}} mine.toml                 settings from a file: lines of name = value, and preset = "..." to build on
  {{train}} config/train_gpt2.py      one of nanoGPT's files, which is read and not executed
  {{train}} --init_from=resume        go on with the newest run in ./out*, or the one that out_dir names

presets: {", ".join(PRESETS)}"""


def main(argv: Sequence[str]) -> int:
    """The command: parse, choose the device, train."""
    parser = settings_parser("train", "[PRESET | FILE] [--name=value ...]", _DESCRIPTION)
    base, explicit, notes = chosen(parser.parse(argv))

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.run.accelerator import use_accelerator

    accelerator = explicit.get("accelerator", "auto")
    require_choice("accelerator", accelerator, ACCELERATORS)
    where = Settings(**{name: value for name, value in explicit.items() if name in PLACEMENT_SETTINGS})
    if where.compile_only is not None:
        from nanogpt_jax.run.compile_only.report import report

        tell(notes)
        base = PRESETS["gpt2"] if base is None else base
        print(report(Settings(**{**base, **explicit})))
        return OK

    from nanogpt_jax.run import hosts

    platform = use_accelerator(accelerator, lambda: hosts.join(where))
    if hosts.is_first():
        tell(notes)
    with hosts.only_first_prints():
        return _train(base, explicit, platform)


def _train(base: Mapping[str, Any] | None, explicit: dict[str, Any], platform: str) -> int:
    from nanogpt_jax.run import loop
    from nanogpt_jax.run.faults import Stopped

    settings = Settings(**_resolved(base, explicit, platform))
    out_dir = settings.out_dir
    try:
        loop.train(settings, explicit)
    except Stopped as stopped:
        again = pasteable("train", init_from="resume", out_dir=out_dir)
        _say("stopped" if settings.eval_only else f"stopped and saved; go on with: {again}", stopped.number)
        return 128 + stopped.number
    if not settings.eval_only:
        print(f"the run is in {out_dir}; text by it: {pasteable('sample', out_dir=out_dir)}", flush=True)
    return OK


def _say(line: str, number: int) -> None:
    """Print where it may be read: after a SIGHUP, standard output is a terminal that is gone, or a file."""
    if number != signal.SIGPIPE:
        with contextlib.suppress(BrokenPipeError):
            print(line, flush=True)
    if number in (signal.SIGPIPE, signal.SIGHUP):
        print(line, file=sys.stderr, flush=True)


def _resolved(base: Mapping[str, Any] | None, explicit: Mapping[str, Any], platform: str) -> dict[str, Any]:
    """All that is asked for by the preset `base`, or the one that suits `platform`, and the settings given one by one.

    Says what they do not: which preset was taken, and for what; which run it is that goes on.
    """
    from nanogpt_jax.run.run_folder import newest_run, usual_out_dir

    suited, sooner = usual(platform), "speedrun_cpu" if platform == "cpu" else "shakespeare_char_modern"
    named = name_of(base)
    base_or_usual = PRESETS[suited] if base is None else base
    dataset = coerced("dataset", explicit.get("dataset"), str | None, ())  # a file may say true
    asked = {**base_or_usual, "out_dir": usual_out_dir(base_or_usual, dataset), **explicit}
    weights = asked.get("init_from", "scratch")
    if weights == "resume":
        if base is None and not {"out_dir", "dataset"} & explicit.keys():
            asked["out_dir"] = newest_run()
            print(f"out_dir: {asked['out_dir']}, the newest run here")
        if named is not None:
            of_it = "nothing" if "out_dir" in explicit else "the name of its folder"
            print(f"going on with the run in {asked['out_dir']} by its own settings; of {named}, {of_it} is taken")
    elif base is None and weights == "scratch":
        print(f"no preset named: taking {suited}, which suits a {platform.upper()}")
        print(f"the same text learned sooner, by a recipe of today: {pasteable('train', sooner)}")
    elif base is None and not asked.get("eval_only"):
        print(f"no preset named: training as {suited} does, which suits a {platform.upper()}; the model is {weights}'s")
    return asked
