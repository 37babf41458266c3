"""The settings of a run as a command line names them: a preset or a file, and flags over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nanogpt_jax.cli.flags import Parser, add_fields, translated
from nanogpt_jax.cli.settings_files import SettingsFile, is_settings_file, read_settings_file
from nanogpt_jax.core.config import Settings
from nanogpt_jax.run.presets import PRESETS, preset


def settings_parser(
    command: str, arguments: str, description: str, read: Callable[[str, Any, str], Any] | None = None
) -> Parser:
    """A parser that takes a preset or a file, and a flag for every setting; `chosen` reads what it gives.

    `read` as in `add_fields`.
    """
    parser = Parser(command, arguments, description)
    parser.add_argument("preset_or_file", nargs="?", metavar="PRESET | FILE", help="settings to start from")
    add_fields(parser, Settings, read)
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
    flags, notes = translated(given, Settings)
    if source is None:
        return Chosen(None, flags, notes)
    file = read_settings_file(Path(source)) if is_settings_file(source) else SettingsFile({"preset": source}, [])
    in_file, more = translated(file.settings, Settings)
    named = in_file.pop("preset", None)
    if named is not None:
        preset(named)  # refuses a name that does not exist
    return Chosen(PRESETS.get(named, {}), {**in_file, **flags}, [*file.notes, *more, *notes])
