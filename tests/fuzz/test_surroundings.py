"""Commands in odd surroundings, each a process: variables, encodings, streams, permissions, signals at any moment."""

from __future__ import annotations

import contextlib
import signal

from hypothesis import Phase, given
from hypothesis import strategies as st

from nanogpt_jax.weights.checkpoint import newest
from tests.helpers.commands import ROOT
from tests.helpers.tiny import TINY

from .processes import Surroundings, end_of_process, forbidden
from .running import fuzz, only_changes

TRAIN = [str(ROOT / "train.py")]
SAMPLE = [str(ROOT / "sample.py"), "--out_dir=run", "--num_samples=1", "--start=to", "--accelerator=cpu"]
SHORT = ["--max_iters=3", "--eval_interval=2", "--data_dir=data", "--out_dir=out"]
# What is run, and the one thing that it may make or change.
COMMANDS = {
    "train": ([*TRAIN, *TINY, *SHORT], "out"),
    "train where it may": ([*TRAIN, *(flag for flag in TINY if "accelerator" not in flag), *SHORT], "out"),
    "resume": ([*TRAIN, "--init_from=resume", "--out_dir=run", "--data_dir=data", "--max_iters=5"], "run"),
    "sample": ([*SAMPLE, "--max_new_tokens=3"], None),
    "convert": (["-m", "nanogpt_jax.convert", "run", "ckpt.pt"], "ckpt.pt"),
    "lens": (["-m", "nanogpt_jax.lens", "--out_dir=run", "--start=to", "--html=page.html"], "page.html"),
    "plot": (["-m", "nanogpt_jax.plot", "run", "--png=curves.png"], "curves.png"),
    "prepare": ([str(ROOT / "data" / "prepare.py"), "text.txt", "--name=mine", "--data_dir=data"], "data/mine"),
}
commands = st.sampled_from(sorted(COMMANDS))
AS_DRAWN = {"phases": [Phase.generate]}  # a process takes seconds: what fails is not made smaller first

SETTINGS = {
    "JAX_ENABLE_X64": ("1", "0"),
    "JAX_PLATFORMS": ("cpu", "cuda", "tpu", "gpu", "quantum", ""),
    "JAX_PLATFORM_NAME": ("cpu", "gpu", "quantum"),
    "JAX_DEFAULT_PRNG_IMPL": ("rbg", "unsafe_rbg", "threefry2x32"),
    "JAX_THREEFRY_PARTITIONABLE": ("0", "1"),
    "JAX_NUMPY_RANK_PROMOTION": ("raise",),
    "JAX_NUMPY_DTYPE_PROMOTION": ("strict",),
    "JAX_DEFAULT_MATMUL_PRECISION": ("bfloat16", "highest"),
    "JAX_DEBUG_NANS": ("1",),
    "JAX_COMPILATION_CACHE_DIR": ("/dev/null/x", ""),
    "PYTHONIOENCODING": ("latin-1", "cp1252", "ascii", "utf-8:strict", "utf-16", "ascii:replace"),
    "PYTHONUTF8": ("0", "1"),
    "PYTHONOPTIMIZE": ("1", "2"),
    "MPLBACKEND": ("module://matplotlib_inline.backend_inline", "Agg", "TkAgg", "nonsense", ""),
    "LC_ALL": ("C", "POSIX", "de_DE.ISO-8859-1", "nonsense"),
    "COLUMNS": ("0", "-1", "3", "x", "100000"),
    "LINES": ("0", "x"),
    "TERM": ("", "dumb", "nonsense", "xterm"),
    "NO_COLOR": ("1",),
    "FORCE_COLOR": ("1",),
    "HOME": ("/dev/null", "/nowhere", ""),
    "XDG_CACHE_HOME": ("/dev/null", "/nowhere/at all", "relative"),
    "TMPDIR": ("/nowhere",),
    "OMP_NUM_THREADS": ("0", "x", "1"),
    "MPLCONFIGDIR": ("/dev/null/x",),
}
variables = st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.integers(0, 10), max_size=4).map(
    lambda drawn: {name: SETTINGS[name][number % len(SETTINGS[name])] for name, number in drawn.items()}
)
redirections = st.sampled_from([
    "", ">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "> >(true)", "2> >(true)",
    "</dev/zero",
])  # fmt: skip


def run(folder, name, around):
    """A command in its surroundings; nothing changes but what it is there to make."""
    argv, makes = COMMANDS[name]
    cache = {"XDG_CACHE_HOME": str(folder.parent / "cache")}  # what is compiled is kept, but not in the user's folder
    around = Surroundings(**{**vars(around), "variables": {**cache, **around.variables}})
    allowed = [folder / part for part in (makes, "relative") if part is not None]
    with only_changes(folder, *allowed):
        return end_of_process(argv, folder, around)


@fuzz(10, **AS_DRAWN)
@given(name=commands, variables=variables, redirections=redirections)
def test_variables_encodings_and_streams(name, variables, redirections, laid_out):
    with laid_out("data", "run", "text.txt") as folder:
        run(folder, name, Surroundings(variables, redirections))


paths = st.sampled_from([
    ".", "data", "data/tiny", "data/tiny/meta.json", "data/tiny/train.bin", "run", "run/checkpoints",
    "run/config.json", "run/metrics.jsonl", "run/.lock", "text.txt",
])  # fmt: skip


@fuzz(10, **AS_DRAWN)
@given(name=commands, path=paths, mode=st.sampled_from([0o000, 0o111, 0o222, 0o333, 0o444, 0o555]))
def test_permissions(name, path, mode, laid_out):
    with laid_out("data", "run", "text.txt") as folder:
        with forbidden(folder / path, mode) if (folder / path).exists() else contextlib.nullcontext():
            argv, makes = COMMANDS[name]
            ended = end_of_process(argv, folder, Surroundings({"XDG_CACHE_HOME": str(folder.parent / "cache")}))
        if ended.status == 2 and makes not in (None, "run"):
            assert not (folder / makes).exists()


@fuzz(6, **AS_DRAWN)
@given(
    number=st.sampled_from([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]),
    name=st.sampled_from(["train", "resume", "sample"]),
    lines=st.integers(1, 12),
    seconds=st.floats(0, 0.5),
)
def test_signals_at_any_moment(number, name, lines, seconds, laid_out):
    longer = {"train": "--max_iters=200", "resume": "--max_iters=200", "sample": "--max_new_tokens=20000"}
    with laid_out("data", "run") as folder:
        argv, makes = COMMANDS[name]
        around = Surroundings({"XDG_CACHE_HOME": str(folder.parent / "cache")}, "", number, lines, seconds)
        with only_changes(folder, *([folder / makes] if makes else ())):
            ended = end_of_process([*argv, longer[name]], folder, around)
        if ended.status == 128 + number and makes and "step 0" in ended.out:
            assert newest(folder / makes) is not None
