"""Flags and settings files that hold anything."""

import contextlib
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_jax.cli import train
from nanogpt_jax.core.config import Settings
from nanogpt_jax.run import loop
from nanogpt_jax.run.presets import PRESETS

from .drawn import bytes_changes, change, odder
from .running import end_of, fuzz

settings_names = st.sampled_from([*Settings.__dataclass_fields__, "n_heads", "preset", "device", "compile", ""])
texts = st.one_of(
    st.text(max_size=12),
    st.text(string.digits + "-.eE_", max_size=8),
    st.sampled_from(["True", "none", "nan", "inf", "1e400", "-0", "9" * 5000, "auto", "\0", "a" * 300, "٣", "1_0"]),
)


@contextlib.contextmanager
def settings_alone():
    """Settings are parsed and checked; what would be trained with them is another test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", lambda settings, given: None)
        yield


@fuzz(800)
@given(
    flags=st.lists(st.tuples(settings_names, texts), max_size=4),
    first=st.sampled_from(["", *PRESETS, "gpt5", "x.toml"]) | st.text(max_size=5),
)
def test_flags(flags, first):
    argv = [first] * bool(first) + [f"--{name}={value}" for name, value in flags]
    with settings_alone(), contextlib.suppress(SystemExit):  # --help
        assert end_of(train.main, *argv) in (0, 2)


@fuzz(600)
@given(
    lines=st.lists(st.tuples(settings_names, odder), max_size=5),
    how=st.none() | bytes_changes,
)
def test_settings_files(lines, how, laid_out):
    with settings_alone(), laid_out() as folder:
        path = folder / "mine.toml"
        text = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in lines) + "n_layer = 2\n"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        if how is not None:
            change(path, how)
        assert end_of(train.main, path) in (0, 2)
