"""The command lines of `train.py` and `sample.py`: flags and files in, settings out, errors as one line.

Flags have nanoGPT's names, `-` and `_` alike. Settings files are TOML, which cannot run code; nanoGPT's `.py` files,
which it executes, are refused by name.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import os
import signal
import sys
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from nanogpt_jax.commands import pasteable
from nanogpt_jax.config import ACCELERATORS, DTYPES, PLACEMENT_SETTINGS, PRESETS, Settings, preset, require_choice
from nanogpt_jax.errors import RunFailed, UserError

_S = TypeVar("_S")

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

_TRAIN_DESCRIPTION = """\
Train a GPT.

  python train.py                           the model that suits this machine, on Tiny Shakespeare
  python train.py gpt_dev --max_iters=1000  a preset, with a setting changed
  python train.py mine.toml                 settings from a file: lines of name = value, and preset = "..." to build on
  python train.py --init_from=resume        go on with the newest run in ./out*, or the one that out_dir names

presets: {presets}"""


def run(command: Callable[[Sequence[str]], int]) -> int:
    """Call `command` with the process's arguments; its exit status, with our own errors as one line on stderr."""
    try:
        return command(sys.argv[1:])
    except (UserError, RunFailed) as error:
        return _told(error, WRONG_USE if isinstance(error, UserError) else FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        sys.stderr.close()
        return OK
    except OSError as error:
        if error.filename is not None:
            raise
        return _told(RunFailed(f"the output could not be written ({error.strerror}); make room for it"), FAILED)


def _told(error: Exception, status: int) -> int:
    """`status`, with the error as one line on stderr."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)  # a file's name may hold a line end
    try:
        sys.stdout.flush()
    except OSError:  # it is full; Python would try again at the end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


class Parser(argparse.ArgumentParser):
    """argparse with our manners: no abbreviations, `-` and `_` alike, and mistakes as `UserError`."""

    def __init__(self, usage: str, description: str) -> None:
        super().__init__(
            usage=usage,
            description=description,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=118),
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self._switches: set[str] = set()

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """The arguments that were given, by name; what was left out is not there."""
        values, unknown = self.parse_known_args(self._spelled_out(argv))
        if unknown:
            self._refuse(unknown[0])
        return vars(values)

    def add_switch(self, group: Any, name: str, **options: Any) -> None:
        """A flag that may stand alone, for True, or take True or False."""
        self._switches.add(f"--{name}")
        group.add_argument(f"--{name}", metavar="BOOL", **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def _spelled_out(self, argv: Sequence[str]) -> list[str]:
        """`--n-layer=4` as `--n_layer=4`, and a switch that stands alone as `--switch=True`."""
        spelled = [_underscored(argument) for argument in argv]
        return [
            f"{argument}=True" if argument in self._switches and after.lower() not in _BOOLEANS else argument
            for argument, after in itertools.pairwise([*spelled, ""])
        ]

    def _refuse(self, argument: str) -> NoReturn:
        name = argument.split("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        if not name.startswith("--"):
            raise UserError(f"{argument!r} is one argument too many; settings are given as --name=value")
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"there is no setting {name}; " + (f"did you mean {near[0]}?" if near else "see --help"))


def train(argv: Sequence[str]) -> int:
    """`python train.py`: parse, choose the device, train."""
    description = _TRAIN_DESCRIPTION.format(presets=", ".join(PRESETS))
    parser = settings_parser("python train.py [PRESET | FILE.toml] [--name=value ...]", description)
    base, explicit = chosen(parser.parse(argv))

    from nanogpt_jax.accelerator import use_accelerator  # slow to import, so not before the arguments are known good

    accelerator = explicit.get("accelerator", "auto")
    require_choice("accelerator", accelerator, ACCELERATORS)
    where = Settings(**{name: value for name, value in explicit.items() if name in PLACEMENT_SETTINGS})
    if where.compile_only is not None:
        from nanogpt_jax.compile_only import report

        base = PRESETS["gpt2"] if base is None else base
        print(report(Settings(**{**base, **explicit})))
        return OK

    from nanogpt_jax import hosts

    platform = use_accelerator(accelerator, lambda: hosts.join(where))
    with hosts.only_first_prints():
        return _train(base, explicit, platform)


def _train(base: Mapping[str, Any] | None, explicit: dict[str, Any], platform: str) -> int:
    from nanogpt_jax import trainer
    from nanogpt_jax.faults import Stopped

    settings = Settings(**_resolved(base, explicit, platform))
    out_dir = settings.out_dir
    try:
        trainer.train(settings, explicit)
    except Stopped as stopped:
        again = pasteable("train.py", init_from="resume", out_dir=out_dir)
        heard = sys.stderr if stopped.number == signal.SIGPIPE else sys.stdout
        print(f"stopped and saved; go on with: {again}", file=heard, flush=True)
        return 128 + stopped.number
    if not settings.eval_only:
        print(f"the run is in {out_dir}; text by it: {pasteable('sample.py', out_dir=out_dir)}", flush=True)
    return OK


def _resolved(base: Mapping[str, Any] | None, explicit: Mapping[str, Any], platform: str) -> dict[str, Any]:
    """All that is asked for by the preset `base`, or the one that suits `platform`, and the settings given one by one.

    Says what they do not: which preset was taken, and for what; which run it is that goes on.
    """
    from nanogpt_jax.run_folder import newest_run, usual_out_dir

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
    from nanogpt_jax.sampler import SampleSettings, sample_text

    description = "Draw text from a trained model; it appears as it is made."
    settings = read_settings(SampleSettings, argv, "python sample.py [--name=value ...]", description)

    from nanogpt_jax.accelerator import use_accelerator

    use_accelerator(settings.accelerator)
    sample_text(settings)
    return OK


def read_settings(kind: type[_S], argv: Sequence[str], usage: str, description: str) -> _S:
    """The settings of class `kind`, with a flag for each of its fields, as the arguments give them."""
    parser = Parser(usage, description)
    _add_fields(parser, kind)
    _add_nanogpt_flags(parser)
    return kind(**_translated(parser.parse(argv)))


def settings_parser(usage: str, description: str) -> Parser:
    """A parser that takes a preset or a file, and a flag for every setting; `chosen` reads what it gives."""
    parser = Parser(usage, description)
    parser.add_argument("preset_or_file", nargs="?", metavar="PRESET | FILE.toml", help="settings to start from")
    _add_fields(parser, Settings)
    _add_nanogpt_flags(parser)
    return parser


def chosen(given: dict[str, Any]) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """What the arguments choose: the settings of the preset they name, and those given one by one, flags over a file.

    The preset is empty for a file that names none, and None where there is neither: the command takes its own then.
    Raises `UserError` if the preset or the file does not exist, or the file holds something else.
    """
    source = given.pop("preset_or_file", None)
    flags = _translated(given)
    if source is None:
        return None, flags
    in_file = _settings_file(Path(source)) if _is_file_name(source) else {"preset": source}
    named = in_file.pop("preset", None)
    if named is not None:
        preset(named)  # refuses a name that does not exist
    return PRESETS.get(named, {}), {**in_file, **flags}


def _add_fields(parser: Parser, settings: type) -> None:
    """A flag for every field of a dataclass of settings, under the groups its metadata names."""
    hints = get_type_hints(settings)
    groups: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        group = groups.setdefault(f.metadata["group"], None) or parser.add_argument_group(f.metadata["group"])
        groups[f.metadata["group"]] = group
        kind = _base_type(hints[f.name])
        choices = f.metadata["choices"]
        options = {
            "type": _reader(f.name, hints[f.name]),
            "help": f"{f.metadata['help']} ({_shown(f.default)})".replace("%", "%%"),
        }
        if kind is bool:
            parser.add_switch(group, f.name, **options)
        else:
            metavar = "{" + ",".join(choices) + "}" if choices else kind.__name__.upper()
            group.add_argument(f"--{f.name}", metavar=metavar, **options)


def _add_nanogpt_flags(parser: Parser) -> None:
    group = parser.add_argument_group("nanoGPT's own", "so that its command lines carry over")
    group.add_argument("--device", metavar="STR", help="cpu or cuda: the same as --accelerator=cpu or gpu")
    parser.add_switch(group, "compile", help="no effect: JAX always compiles")
    parser.add_switch(group, "wandb_log", type=_reader("wandb_log", bool), help="the same as --wandb")
    group.add_argument("--backend", metavar="STR", help="no effect: JAX brings its own")


def _translated(given: dict[str, Any]) -> dict[str, Any]:
    """nanoGPT's own flags turned into ours."""
    given.pop("compile", None)
    given.pop("backend", None)
    if "wandb_log" in given:
        given.setdefault("wandb", given.pop("wandb_log"))
    device = given.pop("device", None)
    if device is not None:
        kind = {"cpu": "cpu", "cuda": "gpu"}.get(device.split(":")[0])
        if kind is None:
            raise UserError(f"device={device} is not cpu or cuda; use --accelerator={{{','.join(ACCELERATORS)}}}")
        given.setdefault("accelerator", kind)
    if given.get("dtype") == "float16":
        raise UserError(f"dtype=float16 needs loss scaling and is not offered; choose one of {', '.join(DTYPES)}")
    return given


def _is_file_name(source: str) -> bool:
    return source not in PRESETS and (source.endswith((".toml", ".py")) or "/" in source or Path(source).is_file())


def _settings_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file. Raises `UserError` if it cannot be read or holds something else."""
    if path.suffix == ".py":
        near = path.stem.removeprefix("train_")
        mend = f"take the preset {near}" if near in PRESETS else "write name = value lines in a .toml file"
        raise UserError(f"{path} is Python, which would have to be executed; {mend}")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"settings file {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # bad TOML, bad UTF-8
        raise UserError(f"settings file {path} is not TOML ({error}); write lines of name = value") from error
    names = {f.name for f in dataclasses.fields(Settings)} | {"preset"}
    for name in settings.keys() - names:
        near = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            f"settings file {path}: there is no setting {name}" + (f"; did you mean {near[0]}?" if near else "")
        )
    return settings


def _underscored(argument: str) -> str:
    """`--n-layer=4` as `--n_layer=4`; values stay as they are."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _base_type(hint: Any) -> type:
    """int of `int | None`, str of a Literal, the hint itself otherwise."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint if isinstance(hint, type) else str


def _reader(name: str, hint: Any) -> Callable[[str], Any]:
    """How the text of a flag becomes a value of the field's type."""
    kind = _base_type(hint)

    def read(text: str) -> Any:
        if type(None) in get_args(hint) and text.lower() == "none":
            return None
        if kind is bool:
            if text.lower() not in _BOOLEANS:
                raise UserError(f"{name}={text} is neither True nor False; give one of them")
            return _BOOLEANS[text.lower()]
        try:
            return kind(text)
        except ValueError:
            article = "a whole number" if kind is int else "a number"
            raise UserError(f"{name}={text} is not {article}; give one") from None

    return read


def _shown(default: Any) -> str:
    return "none" if default is None else repr(default) if isinstance(default, str) else str(default)
