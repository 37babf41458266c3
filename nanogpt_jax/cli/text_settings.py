"""What the commands that continue a text ask for: the settings of `sample.py`, and those that the lens has too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, no_type_check

from nanogpt_jax.core.config import ACCELERATORS, DTYPES, UNKNOWN, WHICH, setting
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_32_bits, require_at_least, require_choice
from nanogpt_jax.core.sampling_config import PAST_BLOCK, QUANTIZE, SamplingConfig


@dataclass(frozen=True)
class TextSettings:
    """What every command that continues a text asks for, under nanoGPT's names and with its defaults."""

    # fmt: off
    init_from: str = setting("resume", "model", "resume: the run in out_dir; or weights by name or path, as train.py takes them")
    out_dir: str | None = setting(None, "model", "the run's folder; none: the newest of ./out*")
    which: Literal["best", "last"] = setting("best", "model", "the weights of a run: with its lowest validation loss, or the last", WHICH)
    start: str = setting("\n", "text", "the prompt, or FILE:PATH to read it from a file")
    unknown: Literal["refuse", "drop", "space"] = setting("refuse", "text", "what becomes of the prompt's characters that the vocabulary lacks", UNKNOWN)
    temperature: float = setting(0.8, "text", "below 1 bolder, above 1 wilder; 0 always takes the likeliest token")
    top_k: int | None = setting(200, "text", "draw from the k likeliest tokens only; none: from all")
    top_p: float | None = setting(None, "text", "draw from the fewest tokens that hold this much probability")
    seed: int = setting(1337, "text", "the same seed gives the same texts")
    accelerator: Literal["auto", "cpu", "gpu", "tpu"] = setting("auto", "system", "which kind of device to run on", ACCELERATORS)
    # fmt: on

    def __post_init__(self) -> None:
        require_at_least("seed", self.seed, 0)
        require_32_bits(self)
        require_choice("accelerator", self.accelerator, ACCELERATORS)
        require_choice("which", self.which, WHICH)
        require_choice("unknown", self.unknown, UNKNOWN)
        self.sampling_config(None)

    def sampling_config(self, vocab_size: int | None) -> SamplingConfig:
        """How tokens are drawn, from the first `vocab_size` of the table."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p, vocab_size)


no_type_check(TextSettings.__init__)  # its __post_init__ says what is wrong, in a user's words


@dataclass(frozen=True)
class SampleSettings(TextSettings):
    """The settings of `sample.py`."""

    # fmt: off
    num_samples: int = setting(10, "text", "how many texts to draw")
    max_new_tokens: int = setting(500, "text", "tokens in each text, after the prompt")
    stop: bool = setting(False, "text", "end a text where the model draws its end-of-text token")
    past_block: Literal["reread", "rolling"] = setting("reread", "text", "past block_size: reread its last tokens for each, as nanoGPT does; or rolling, with rotary positions: let the memory roll, at one cost for any length", PAST_BLOCK)
    chat: bool = setting(False, "chat", "talk with a model that was tuned on chats: it answers each line of standard input")
    template: str | None = setting(None, "chat", "how messages become text: plain, chatml or a JSON file; none: as the model was tuned")
    system: str | None = setting(None, "chat", "a message before all others that says who the assistant is; none: none")
    quantize: Literal["none", "int8"] = setting("none", "system", "int8: weights in a quarter of the memory", QUANTIZE)
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "system", "type of matrix products; auto: bfloat16 on TPU and on GPU from Ampere on", DTYPES)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_samples", "max_new_tokens"):
            require_at_least(name, getattr(self, name), 1)
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("quantize", self.quantize, QUANTIZE)
        require_choice("past_block", self.past_block, PAST_BLOCK)
        if self.chat:
            self._require_one_conversation()
            return
        for flag, value in (("template", self.template), ("system", self.system)):
            if value is not None:
                raise UserError(f"{flag}={value} is for a conversation; add --chat, or leave it out")

    def _require_one_conversation(self) -> None:
        """Refuse what has no meaning in a chat; a default counts as not given."""
        if self.num_samples not in (1, SampleSettings.num_samples):
            raise UserError(f"num_samples={self.num_samples} is for texts, and a chat is one; leave it out")
        if self.start != SampleSettings.start:
            raise UserError(f"start={self.start} is for texts, and a chat begins with what you say; leave it out")
        if self.past_block != SampleSettings.past_block:
            raise UserError(f"past_block={self.past_block} is for texts, and a chat stays in the block; leave it out")


no_type_check(SampleSettings.__init__)  # likewise
