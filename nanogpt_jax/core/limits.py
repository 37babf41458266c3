"""How large a value may be, and the refusals of one that is too large, too small, of another kind or no choice.

`core/config.py` holds every setting to these, and commands their flags; each refusal is a `UserError` of one line.
"""

from __future__ import annotations

from typing import Any, get_args

from nanogpt_jax.core.errors import UserError

MAX_VOCAB_SIZE = 2**24  # float32 counts so many tokens one by one, as `top_k` does
MAX_SEED = 2**32 - 1
MAX_INT = 2**31 - 1  # counters on the devices are int32
MAX_LAYERS = 10_000
MAX_PARAMETERS = 10**13


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise `UserError` if setting `name` is below `least`."""
    if value < least:
        raise UserError(f"{name}={value} is smaller than {least}; choose at least {least}")


def require_at_most(name: str, value: float, most: float, why: str) -> None:
    """Raise `UserError` if setting `name` is above `most`, and say why that is the limit."""
    if value > most:
        raise UserError(f"{name}={value} is larger than {most} ({why}); choose at most {most}")


def require_32_bits(settings: object) -> None:
    """Raise `UserError` if a whole number among the fields of a dataclass is larger than what it is kept in."""
    for name, value in vars(settings).items():
        if type(value) is int:
            require_at_most(name, value, MAX_SEED if name == "seed" else MAX_INT, "it is kept in 32 bits")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `UserError` if setting `name` is none of `choices`."""
    if value not in choices:
        raise UserError(f"{name}={value!r} is not one of {', '.join(choices)}; choose one of them")


def coerced(name: str, value: Any, hint: Any, choices: tuple[str, ...]) -> Any:
    """`value` as the type that `hint` declares, so that `learning_rate=1` in a TOML file is the float it stands for."""
    kinds = get_args(hint) or (hint,)
    if choices:
        require_choice(name, value, choices)
        return value
    if value is None and type(None) in kinds:
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not any(type(value) is kind for kind in kinds):  # `type is`: a bool is an int to isinstance
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not type(None))
        raise UserError(f"{name}={value!r} is a {type(value).__name__}; give a {wanted}")
    return value
