"""Text from a trained model to the terminal, as it is made: what `sample.py` does."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_jax.cli.entry import OK
from nanogpt_jax.cli.flags import read_settings
from nanogpt_jax.cli.text_settings import SampleSettings


def main(argv: Sequence[str]) -> int:
    """The command: parse, load, and print text as it is made."""
    description = "Draw text from a trained model, or talk with it; it appears as it is made."
    settings = read_settings(SampleSettings, argv, "sample", description)

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.cli.texts import chat_text, sample_text
    from nanogpt_jax.run.accelerator import use_accelerator
    from nanogpt_jax.run.faults import memory_in_one_line

    use_accelerator(settings.accelerator)
    work, sizes = (chat_text, ()) if settings.chat else (sample_text, ("num_samples",))
    with memory_in_one_line(settings, (*sizes, "max_new_tokens")):
        work(settings)
    return OK
