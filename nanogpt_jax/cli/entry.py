"""The command lines of `train.py` and `sample.py`: flags and files in, settings out, errors as one line.

`flags.py` has the flags, `settings_files.py` the files; here is what the commands make of both.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from nanogpt_jax.cli.flags import Parser, add_fields, read_settings, tell, translated
from nanogpt_jax.cli.settings_files import SettingsFile, is_settings_file, read_settings_file
from nanogpt_jax.core.config import ACCELERATORS, PLACEMENT_SETTINGS, PRESETS, Settings, preset, require_choice
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.files import REFUSALS, refused
from nanogpt_jax.data.process import readers_may_leave

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_TRAIN_DESCRIPTION = """\
Train a GPT.

  python train.py                           the model that suits this machine, on Tiny Shakespeare
  python train.py gpt_dev --max_iters=1000  a preset, with a setting changed
  python train.py mine.toml                 settings from a file: lines of name = value, and preset = "..." to build on
  python train.py config/train_gpt2.py      one of nanoGPT's files, which is read and not executed
  python train.py --init_from=resume        go on with the newest run in ./out*, or the one that out_dir names

presets: {presets}"""


def run(command: Callable[[Sequence[str]], int]) -> int:
    """Call `command` with the process's arguments; its exit status, with our own errors as one line on stderr.

    What stdout and stderr cannot show, in whatever encoding they have, is replaced: nothing printed is worth a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not None, where it is closed
            stream.reconfigure(errors="replace")
    with readers_may_leave(_nobody_reads):
        return _status_of(command)


def _status_of(command: Callable[[Sequence[str]], int]) -> int:
    try:
        status = command(sys.argv[1:])
        sys.stdout.flush()
        return status
    except (UserError, RunFailed) as error:
        return _told(error, WRONG_USE if isinstance(error, UserError) else FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        return OK
    except OSError as error:
        if error.filename is not None:
            if error.errno not in REFUSALS:
                raise
            return _told(refused(error.filename2 or error.filename, error, "used"), WRONG_USE)
        return _told(RunFailed(f"the output could not be written ({error.strerror}); make room for it"), FAILED)


def _nobody_reads() -> NoReturn:
    raise BrokenPipeError(errno.EPIPE, "nobody reads the output")


def _told(error: Exception, status: int) -> int:
    """`status`, with the error as one line on stderr."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)  # a file's name may hold a line end
    try:
        sys.stdout.flush()
    except OSError:  # it is full; Python would try again at the end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def train(argv: Sequence[str]) -> int:
    """`python train.py`: parse, choose the device, train."""
    description = _TRAIN_DESCRIPTION.format(presets=", ".join(PRESETS))
    parser = settings_parser("python train.py [PRESET | FILE] [--name=value ...]", description)
    base, explicit, notes = chosen(parser.parse(argv))

    from nanogpt_jax.run.accelerator import (
        use_accelerator,  # slow to import, so not before the arguments are known good
    )

    accelerator = explicit.get("accelerator", "auto")
    require_choice("accelerator", accelerator, ACCELERATORS)
    where = Settings(**{name: value for name, value in explicit.items() if name in PLACEMENT_SETTINGS})
    if where.compile_only is not None:
        from nanogpt_jax.compile_only.report import report

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
        again = pasteable("train.py", init_from="resume", out_dir=out_dir)
        _say("stopped" if settings.eval_only else f"stopped and saved; go on with: {again}", stopped.number)
        return 128 + stopped.number
    if not settings.eval_only:
        print(f"the run is in {out_dir}; text by it: {pasteable('sample.py', out_dir=out_dir)}", flush=True)
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

    usual = "shakespeare_char_cpu" if platform == "cpu" else "shakespeare_char"
    named = next((name for name, settings in PRESETS.items() if settings is base), None)
    base_or_usual = PRESETS[usual] if base is None else base
    asked = {**base_or_usual, "out_dir": usual_out_dir(base_or_usual, explicit.get("dataset")), **explicit}
    weights = asked.get("init_from", "scratch")
    if weights == "resume":
        if base is None and not {"out_dir", "dataset"} & explicit.keys():
            asked["out_dir"] = newest_run()
            print(f"out_dir: {asked['out_dir']}, the newest run here")
        if named is not None:
            of_it = "nothing" if "out_dir" in explicit else "the name of its folder"
            print(f"going on with the run in {asked['out_dir']} by its own settings; of {named}, {of_it} is taken")
    elif base is None and weights == "scratch":
        print(f"no preset named: taking {usual}, which suits a {platform.upper()}")
    elif base is None and not asked.get("eval_only"):
        print(f"no preset named: training as {usual} does, which suits a {platform.upper()}; the model is {weights}'s")
    return asked


def sample(argv: Sequence[str]) -> int:
    """`python sample.py`: parse, load, and print text as it is made."""
    from nanogpt_jax.cli.sample import SampleSettings, sample_text

    description = "Draw text from a trained model; it appears as it is made."
    settings = read_settings(SampleSettings, argv, "python sample.py [--name=value ...]", description)

    from nanogpt_jax.run.accelerator import use_accelerator

    use_accelerator(settings.accelerator)
    sample_text(settings)
    return OK


def settings_parser(usage: str, description: str) -> Parser:
    """A parser that takes a preset or a file, and a flag for every setting; `chosen` reads what it gives."""
    parser = Parser(usage, description)
    parser.add_argument("preset_or_file", nargs="?", metavar="PRESET | FILE", help="settings to start from")
    add_fields(parser, Settings)
    return parser


class Chosen(NamedTuple):
    """What the arguments choose.

    Attributes:
        base: the settings of the preset they name; empty for a file that names none, and None where there is neither:
            the command takes its own then.
        explicit: the settings that were given one by one, flags over a file.
        notes: what there is to say of them, in lines.
    """

    base: Mapping[str, Any] | None
    explicit: dict[str, Any]
    notes: list[str]


def chosen(given: dict[str, Any]) -> Chosen:
    """Read what `settings_parser` gave. Raises `UserError` if the preset or the file does not exist, or holds else."""
    source = given.pop("preset_or_file", None)
    flags, notes = translated(given)
    if source is None:
        return Chosen(None, flags, notes)
    file = read_settings_file(Path(source)) if is_settings_file(source) else SettingsFile({"preset": source}, [])
    in_file, more = translated(file.settings)
    named = in_file.pop("preset", None)
    if named is not None:
        preset(named)  # refuses a name that does not exist
    return Chosen(PRESETS.get(named, {}), {**in_file, **flags}, [*file.notes, *more, *notes])
