"""Commands that messages suggest: pasted into the shell that showed them, they do what is said of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import nanogpt_jax

_CHECKOUT = Path(nanogpt_jax.__file__).resolve().parent.parent


def pasteable(program: str, *arguments: object, **flags: object) -> str:
    """A line for a shell in this working directory, its names quoted where they need it.

    `program` is a script of the checkout, as ``train.py`` or ``data/prepare.py``, or a module, as ``nanogpt_jax.plot``.
    """
    script = _CHECKOUT / program
    if not program.endswith(".py"):
        start = ["python", "-m", program]
    else:
        start = ["python", program if Path.cwd() == _CHECKOUT or not script.is_file() else str(script)]
    return shlex.join([*start, *map(str, arguments), *flags_of(flags)])


def flags_to_resume(out_dir: object, **flags: object) -> str:
    """The flags of `train.py`, and of each of its processes, that go on with the run in `out_dir`."""
    return shlex.join(flags_of({"init_from": "resume", "out_dir": out_dir, **flags}))


def flags_of(settings: Mapping[str, object]) -> list[str]:
    """Settings as flags, not yet quoted."""
    return [f"--{name}={value}" for name, value in settings.items()]


def to_prepare(data_set: Path) -> str:
    """The command that prepares the data set which belongs in a folder; of one's own texts, FILE... stands for them."""
    where = {} if data_set.parent.resolve() == _CHECKOUT / "data" else {"data_dir": data_set.parent}
    own_script = f"data/{data_set.name}/prepare.py"
    if (_CHECKOUT / own_script).is_file():
        return pasteable(own_script, **where)
    return pasteable("data/prepare.py", "FILE...", name=data_set.name, **where)


def to_train_on(data_set: Path) -> str:
    """The command that trains on the data set in a folder."""
    where = {} if data_set.parent.resolve() == Path("data").resolve() else {"data_dir": data_set.parent}
    return pasteable("train.py", dataset=data_set.name, **where)
