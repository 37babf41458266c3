"""Flags: `--name=value` for every field of a dataclass of settings, and nanoGPT's own words turned into ours.

Flags have nanoGPT's names, `-` and `_` alike; a mistake is a `UserError`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from nanogpt_jax.core.config import ACCELERATORS, DTYPES
from nanogpt_jax.core.errors import UserError, did_you_mean
from nanogpt_jax.data.commands import start_of

_S = TypeVar("_S")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_DEVICES = {"cpu": "cpu", "cuda": "gpu", "mps": "auto"}  # nanoGPT's word for each of ours

NANOGPTS_OWN = ("device", "compile", "wandb_log", "backend")
"""Settings that only nanoGPT has, which `translated` takes away."""


class Parser(argparse.ArgumentParser):
    """argparse with our manners: no abbreviations, `-` and `_` alike, and mistakes as `UserError`.

    `{train}` in a description becomes what starts that command here; so does the name of any other.
    """

    def __init__(self, command: str, arguments: str, description: str) -> None:
        super().__init__(
            usage=f"{start_of(command)} {arguments}",
            description=re.sub(r"\{([a-z_ ]+)\}", lambda named: start_of(named[1]), description),
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
        raise UserError(f"there is no setting {name}{did_you_mean(name, known) or '; see --help'}")


def read_settings(kind: type[_S], argv: Sequence[str], command: str, description: str) -> _S:
    """The settings of class `kind`, with a flag for each of its fields, as the arguments give them."""
    parser = Parser(command, "[--name=value ...]", description)
    add_fields(parser, kind)
    given, notes = translated(parser.parse(argv), kind)
    tell(notes)
    return kind(**given)


def tell(notes: Iterable[str]) -> None:
    """Say what is done otherwise than it was asked for, on stderr: stdout is for what the command makes."""
    for note in notes:
        print(note, file=sys.stderr, flush=True)


def add_fields(parser: Parser, settings: type, read: Callable[[str, Any, str], Any] | None = None) -> None:
    """A flag for every field of a dataclass of settings, under the groups its metadata names, and nanoGPT's own.

    `read` makes a value of a flag's name, its type and its text, by default one of that type.
    """
    read = read_value if read is None else read
    hints = get_type_hints(settings)
    groups: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        group = groups.setdefault(f.metadata["group"], None) or parser.add_argument_group(f.metadata["group"])
        groups[f.metadata["group"]] = group
        kind = base_type(hints[f.name])
        choices = f.metadata["choices"]
        options: dict[str, Any] = {
            "type": partial(read, f.name, hints[f.name]),
            "help": f"{f.metadata['help']} ({_shown(f.default)})".replace("%", "%%"),
        }
        if kind is bool:
            parser.add_switch(group, f.name, **options)
        else:
            metavar = "{" + ",".join(choices) + "}" if choices else kind.__name__.upper()
            group.add_argument(f"--{f.name}", metavar=metavar, **options)
    _add_nanogpts_own(parser)


def _add_nanogpts_own(parser: Parser) -> None:
    group = parser.add_argument_group("nanoGPT's own", "so that its command lines carry over")
    compiles, logs = (partial(read_value, name, bool) for name in ("compile", "wandb_log"))
    group.add_argument("--device", metavar="STR", help="cpu or cuda: the same as --accelerator=cpu or gpu")
    parser.add_switch(group, "compile", type=compiles, help="no effect: JAX always compiles")
    parser.add_switch(group, "wandb_log", type=logs, help="the same as --wandb")
    group.add_argument("--backend", metavar="STR", help="no effect: JAX brings its own")


def translated(given: Mapping[str, Any], settings: type) -> tuple[dict[str, Any], list[str]]:
    """Settings of that class with nanoGPT's own turned into ours, and lines that say what of them has no effect."""
    ours = {name: value for name, value in given.items() if name not in NANOGPTS_OWN}
    notes = []
    if given.get("compile") is False:
        notes.append("compile=False has no effect: JAX always compiles")
    if "backend" in given:
        notes.append(f"backend={given['backend']} has no effect: JAX brings its own")
    if "wandb_log" in given and "wandb" in {f.name for f in dataclasses.fields(settings)}:
        ours.setdefault("wandb", given["wandb_log"])
    if "device" in given:
        kind, _, index = str(given["device"]).partition(":")
        if kind not in _DEVICES:
            raise UserError(
                f"device={given['device']} is not cpu or cuda; use --accelerator={{{','.join(ACCELERATORS)}}}"
            )
        ours.setdefault("accelerator", _DEVICES[kind])
        if kind == "mps":
            notes.append("device=mps is PyTorch's: taking what JAX finds here")
        elif index:
            notes.append(f"device={given['device']}: taking every device of that kind; choose by CUDA_VISIBLE_DEVICES")
    if ours.get("dtype") == "float16":
        raise UserError(f"dtype=float16 needs loss scaling and is not offered; choose one of {', '.join(DTYPES)}")
    return ours, notes


def _underscored(argument: str) -> str:
    """`--n-layer=4` as `--n_layer=4`; values stay as they are."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def base_type(hint: Any) -> type:
    """int of `int | None`, str of a Literal, the hint itself otherwise."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint if isinstance(hint, type) else str


def read_value(name: str, hint: Any, text: str) -> Any:
    """The text of a flag as a value of the field's type."""
    kind = base_type(hint)
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


def _shown(default: Any) -> str:
    return "none" if default is None else repr(default) if isinstance(default, str) else str(default)
