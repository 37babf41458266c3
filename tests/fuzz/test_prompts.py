"""Prompts and how to draw, given as anything."""

from hypothesis import given
from hypothesis import strategies as st

from nanogpt_jax.cli import sample

from .drawn import odd
from .running import end_of, fuzz, only_changes

prompts = st.one_of(
    st.text("to be,nq:", max_size=20),
    st.text(max_size=8),
    st.sampled_from(["", "FILE:", "FILE:/", "FILE:missing", "FILE:\0", "FILE:/dev/null", "\ud800", "to " * 3000, "\n"]),
)


@fuzz(80)
@given(
    start=prompts,
    flags=st.lists(
        st.tuples(st.sampled_from(["seed", "top_k", "top_p", "temperature", "num_samples", "max_new_tokens"]), odd),
        max_size=1,
    ),
)
def test_prompts(start, flags, pristine):
    argv = [f"--out_dir={pristine / 'run'}", "--num_samples=1", "--max_new_tokens=3", f"--start={start}"]
    small = [(name, value) for name, value in flags if not (isinstance(value, int) and value > 10)]
    with only_changes(pristine):
        end_of(sample.main, *argv, "--accelerator=cpu", *(f"--{name}={value}" for name, value in small))


@fuzz(50)
@given(data=st.binary(max_size=30) | st.text("to be", max_size=30).map(str.encode))
def test_prompt_files(data, laid_out, pristine):
    with laid_out() as folder:
        (folder / "prompt").write_bytes(data)
        argv = [f"--out_dir={pristine / 'run'}", "--num_samples=1", "--max_new_tokens=3", "--accelerator=cpu"]
        with only_changes(folder):
            end_of(sample.main, *argv, f"--start=FILE:{folder / 'prompt'}")
