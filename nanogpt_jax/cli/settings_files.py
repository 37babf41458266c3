"""Settings in files: TOML, and the `.py` files of nanoGPT's `config/`, which are read and never executed."""

from __future__ import annotations

import ast
import dataclasses
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nanogpt_jax.cli.flags import NANOGPTS_OWN
from nanogpt_jax.core.config import PRETRAINED, Settings
from nanogpt_jax.core.errors import UserError, did_you_mean
from nanogpt_jax.data.files import is_file, refused
from nanogpt_jax.run.presets import PRESETS

_LARGEST = 2**63  # of whole numbers; no setting takes more, and Python does not write out those of 5000 digits


class SettingsFile(NamedTuple):
    """What a file sets, under our names, nanoGPT's and ``preset``; and what there is to say of it, in lines."""

    settings: dict[str, Any]
    notes: list[str]


def is_settings_file(source: str) -> bool:
    """Whether `source` means a file, and not a preset."""
    return source not in PRESETS and (source.endswith((".toml", ".py")) or "/" in source or is_file(Path(source)))


def read_settings_file(path: Path) -> SettingsFile:
    """The settings in a TOML file, or in one of nanoGPT's. Raises `UserError` if it cannot be read or holds more.

    For one of nanoGPT's own seven files that is not there the settings stand in, so that its command lines carry over.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        if path.suffix == ".py" and (settings := _nanogpts_own(path.stem)) is not None:
            what = f"the preset {settings['preset']}" if "preset" in settings else f"init_from={settings['init_from']}"
            return SettingsFile(settings, [f"{path} is not here: taking {what} in its place"])
        raise refused(f"settings file {path}", error, "read") from error
    except OSError as error:
        raise refused(f"settings file {path}", error, "read") from error
    except ValueError as error:
        raise UserError(f"settings file {path} is not UTF-8 text ({error}); write lines of name = value") from error
    found, notes = _of_python(text, path) if path.suffix == ".py" else (_of_toml(text, path), [])
    names = {f.name for f in dataclasses.fields(Settings)} | {"preset", *NANOGPTS_OWN}
    for name, (where, _) in found.items():
        if name not in names:
            raise UserError(
                f"settings file {path}{where}: there is no setting {name}{did_you_mean(name, names) or '; see --help'}"
            )
    return SettingsFile({name: value for name, (_, value) in found.items()}, notes)


def _of_toml(text: str, path: Path) -> dict[str, tuple[str, Any]]:
    """Name -> where it is, and its value."""
    try:
        return {name: ("", value) for name, value in tomllib.loads(text).items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"settings file {path} is not TOML ({error}); write lines of name = value") from error


def _of_python(text: str, path: Path) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """The same of lines ``name = value`` in Python, where a value is a literal or a product of numbers; and notes."""
    found, notes = {}, []
    for line, name, node in _assignments(text, path):
        try:
            found[name] = (f", line {line}", _value(node))
        except (ValueError, TypeError, RecursionError, MemoryError):
            source = " ".join(str(ast.get_source_segment(text, node)).split())[:60]
            if name != "wandb_run_name":  # which nanoGPT's own file makes of the time
                raise UserError(
                    f"settings file {path}, line {line}: {name} = {source} is code, which is never executed here; "
                    "write the value itself"
                ) from None
            notes.append(f"{path}, line {line}: {name} = {source} is not executed; W&B makes up a name")
    return found, notes


def _assignments(text: str, path: Path) -> Iterator[tuple[int, str, ast.expr]]:
    """Line, name and value of every assignment; imports and texts that stand alone do nothing here. `UserError`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of the compiler, about what is not compiled
            statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = "" if line is None else f", line {line}"
        raise UserError(f"settings file {path}{where} is not Python; write lines of name = value") from error
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield statement.lineno, name, value
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                pass
            case _:
                raise UserError(
                    f"settings file {path}, line {statement.lineno} is code, which is never executed here; "
                    "write lines of name = value"
                )


def _value(node: ast.expr) -> Any:
    """The value of a literal, or of a product of numbers such as ``5 * 8``. Raises `ValueError` for anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        value = _number(_value(node.left)) * _number(_value(node.right))
    else:
        value = ast.literal_eval(node)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError("too large")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError("no number")
    return value


def _nanogpts_own(stem: str) -> dict[str, Any] | None:
    """The settings of the file of nanoGPT's `config/` with that name, without `.py`; None: it has no such file."""
    preset, weights = stem.removeprefix("train_"), stem.removeprefix("eval_").replace("_", "-")
    if preset in ("shakespeare_char", "gpt2", "finetune_shakespeare"):
        return {"preset": preset}
    if stem.startswith("eval_") and weights in PRETRAINED:
        return {"init_from": weights, "eval_only": True, "batch_size": 8, "eval_iters": 500}
    return None
