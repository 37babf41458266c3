"""Commands that messages suggest: pasted into the shell that showed them, they do what is said of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import nanogpt_jax
from nanogpt_jax.data.files import exists, is_file

_CHECKOUT = Path(nanogpt_jax.__file__).resolve().parent.parent


def pasteable(program: str, *arguments: object, **flags: object) -> str:
    """A line for a shell in this working directory, its names quoted where they need it.

    `program` is a script of the checkout, as ``train.py`` or ``data/prepare.py``, or a module, as ``nanogpt_jax.plot``.
    """
    script = _CHECKOUT / program
    if not program.endswith(".py"):
        start = ["python", "-m", program]
    else:
        start = ["python", program if Path.cwd() == _CHECKOUT or not is_file(script) else str(script)]
    return shlex.join([*start, *map(str, arguments), *flags_of(flags)])


def flags_to_resume(out_dir: object, **flags: object) -> str:
    """The flags of `train.py`, and of each of its processes, that go on with the run in `out_dir`."""
    return shlex.join(flags_of({"init_from": "resume", "out_dir": out_dir, **flags}))


def flags_of(settings: Mapping[str, object]) -> list[str]:
    """Settings as flags, not yet quoted."""
    return [f"--{name}={value}" for name, value in settings.items()]


def to_prepare(data_set: Path) -> str:
    """The command that prepares the data set which belongs in a folder; of one's own texts, FILE... stands for them."""
    own_script = f"data/{data_set.name}/prepare.py"
    if is_file(_CHECKOUT / own_script):
        return pasteable(own_script, **_where_prepared(data_set))
    return pasteable("data/prepare.py", "FILE...", name=data_set.name, **_where_prepared(data_set))


def to_adopt(folder: Path) -> str:
    """The command that takes over nanoGPT's token files in a folder, of which only a `meta.pkl` may say what they are.

    Where its text does not lie beside them, TEXTFILE stands for it.
    """
    text = folder / "input.txt"  # what nanoGPT calls it
    which = f"char:{text if is_file(text) else 'TEXTFILE'}" if exists(folder / "meta.pkl") else "gpt2"
    return pasteable("data/prepare.py", adopt=folder, tokenizer=which)


def to_put_in_tokens_of(source: str, data_set: Path, **flags: object) -> str:
    """The command that makes a data set of the text of another, with the tokenizer that `source` names."""
    name = f"{data_set.name}-as-{Path(source).stem}"
    return pasteable("data/prepare.py", data_set, tokenizer=source, name=name, **flags, **_where_prepared(data_set))


def _where_prepared(data_set: Path) -> dict[str, object]:
    return {} if data_set.parent.resolve() == _CHECKOUT / "data" else {"data_dir": data_set.parent}


def to_train_on(data_set: Path) -> str:
    """The command that trains on the data set in a folder."""
    where = {} if data_set.parent.resolve() == Path("data").resolve() else {"data_dir": data_set.parent}
    return pasteable("train.py", dataset=data_set.name, **where)
