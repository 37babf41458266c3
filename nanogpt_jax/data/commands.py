"""Commands that messages suggest: pasted into the shell that showed them, they do what is said of them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from nanogpt_jax.data.addresses import address_of
from nanogpt_jax.data.files import exists, is_file

INSTALLED = "nanogpt-jax"  # by which all commands start where the package is installed
_NAMED = ("shakespeare_char", "shakespeare", "openwebtext")  # the data sets that are prepared by their names
_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
_SCRIPTS = {
    "train": "train.py",
    "sample": "sample.py",
    "prepare": "data/prepare.py",
    **{f"prepare {name}": f"data/{name}/prepare.py" for name in _NAMED},
}


def pasteable(command: str, *arguments: object, **flags: object) -> str:
    """A line for a shell in this working directory, its names quoted where they need it.

    `command` is what would follow `nanogpt-jax`, as ``train`` or ``prepare openwebtext``.
    """
    words = (str(address_of(argument)) for argument in arguments)
    return shlex.join([*map(_found_from_here, _start(command)), *words, *flags_of(flags)])


def start_of(command: str) -> str:
    """The words that start a command, as its --help shows them."""
    return " ".join(_start(command))


def to_install(extra: str) -> str:
    """The command that installs an extra of this package, from where the package itself came."""
    if not _in_checkout():
        return f"pip install {shlex.quote(f'{INSTALLED}[{extra}]')}"
    where = "." if Path.cwd() == _CHECKOUT else _CHECKOUT
    return f"pip install -e {shlex.quote(f'{where}[{extra}]')}"


def _start(command: str) -> list[str]:
    """The words that start a command in the way in which this process was started, as far as that is one of ours."""
    if _by_scripts():
        return ["python", _SCRIPTS[command]] if command in _SCRIPTS else ["python", "-m", f"nanogpt_jax.{command}"]
    start = [INSTALLED] if _by_installed_command() else ["python", "-m", "nanogpt_jax"]
    return [*start, *command.split()]


def _program() -> str:
    return sys.argv[0] if sys.argv else ""  # which Python leaves empty where it is embedded


def _by_installed_command() -> bool:
    return Path(_program()).stem == INSTALLED


def _by_scripts() -> bool:
    is_one_command = _by_installed_command() or Path(_program()).resolve() == _PACKAGE / "__main__.py"
    return _in_checkout() and not is_one_command


def _in_checkout() -> bool:
    return is_file(_CHECKOUT / "pyproject.toml")


def _found_from_here(word: str) -> str:
    """A word of `_start` as the shell finds what it names: a script from any folder, the command off the PATH too."""
    if word == INSTALLED:
        found = shutil.which(word)
        return word if found and os.path.realpath(found) == os.path.realpath(_program()) else _program()
    return str(_CHECKOUT / word) if word in _SCRIPTS.values() and Path.cwd() != _CHECKOUT else word


def flags_to_resume(out_dir: object, **flags: object) -> str:
    """The flags of `train`, and of each of its processes, that go on with the run in `out_dir`."""
    return shlex.join(flags_of({"init_from": "resume", "out_dir": out_dir, **flags}))


def flags_of(settings: Mapping[str, object]) -> list[str]:
    """Settings as flags, not yet quoted."""
    return [f"--{name}={address_of(value)}" for name, value in settings.items()]


def to_prepare(data_set: Path) -> str:
    """The command that prepares the data set which belongs in a folder; of one's own texts, FILE... stands for them."""
    if data_set.name in _NAMED:
        return pasteable(f"prepare {data_set.name}", **_where_prepared(data_set))
    return pasteable("prepare", "FILE...", name=data_set.name, **_where_prepared(data_set))


def to_adopt(folder: Path) -> str:
    """The command that takes over nanoGPT's token files in a folder, of which only a `meta.pkl` may say what they are.

    Where its text does not lie beside them, TEXTFILE stands for it.
    """
    text = folder / "input.txt"  # what nanoGPT calls it
    which = f"char:{text if is_file(text) else 'TEXTFILE'}" if exists(folder / "meta.pkl") else "gpt2"
    return pasteable("prepare", adopt=folder, tokenizer=which)


def to_put_in_tokens_of(source: str, data_set: Path, **flags: object) -> str:
    """The command that makes a data set of the text of another, with the tokenizer that `source` names."""
    name = f"{data_set.name}-as-{Path(source).stem}"
    folder = f"./{data_set}" if str(data_set) in _NAMED else data_set  # else the name would be taken for the set's own
    return pasteable("prepare", folder, tokenizer=source, name=name, **flags, **_where_prepared(data_set))


def _where_prepared(data_set: Path) -> dict[str, object]:
    usual = _CHECKOUT / "data" if _by_scripts() else Path("data").resolve()
    return {} if data_set.parent.resolve() == usual else {"data_dir": data_set.parent}


def to_train_on(data_set: Path, **flags: object) -> str:
    """The command that trains on the data set in a folder."""
    where = {} if data_set.parent.resolve() == Path("data").resolve() else {"data_dir": data_set.parent}
    return pasteable("train", dataset=data_set.name, **where, **flags)
