"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, no_type_check

from nanogpt_jax.core.config import ACCELERATORS, DTYPES, UNKNOWN, WHICH, setting
from nanogpt_jax.core.limits import require_32_bits, require_at_least, require_choice


@dataclass(frozen=True)
class EvaluateSettings:
    """The settings of an evaluation, beside models and files."""

    # fmt: off
    stride: int | None = setting(None, "evaluation", "tokens by which the windows of a text move on; none: half of block_size")
    limit: int | None = setting(None, "evaluation", "items of each file that are taken, the first ones; texts are taken whole; none: all")
    batch_size: int = setting(16, "evaluation", "passages that are read at once")
    unknown: Literal["refuse", "drop", "space"] = setting("refuse", "evaluation", "what becomes of characters that a vocabulary lacks", UNKNOWN)
    which: Literal["best", "last"] = setting("best", "model", "the weights of a run: with its lowest validation loss, or the last", WHICH)
    data_dir: str = setting("data", "model", "folder that holds the data sets, where a nanoGPT ckpt.pt names one for its tokens")
    accelerator: Literal["auto", "cpu", "gpu", "tpu"] = setting("auto", "system", "which kind of device to run on", ACCELERATORS)
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "system", "type of matrix products; auto: bfloat16 on TPU and on GPU from Ampere on", DTYPES)
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("stride", "limit", "batch_size"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)
        require_32_bits(self)
        require_choice("unknown", self.unknown, UNKNOWN)
        require_choice("which", self.which, WHICH)
        require_choice("accelerator", self.accelerator, ACCELERATORS)
        require_choice("dtype", self.dtype, DTYPES)


no_type_check(EvaluateSettings.__init__)  # its __post_init__ says what is wrong, in a user's words
