"""What may be asked of sampling: how a token is drawn, what is done past `block_size`, how the weights lie in memory.

No JAX is needed to read it, so that a command knows at once whether it is asked for what there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_choice

PastBlock = Literal["reread", "rolling"]
PAST_BLOCK = get_args(PastBlock)

Quantize = Literal["none", "int8"]
QUANTIZE = get_args(Quantize)


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen from its logits.

    Attributes:
        temperature: divides the logits; below 1 is bolder, 0 takes the likeliest token (greedy).
        top_k: only the k likeliest tokens may be drawn; None for all.
        top_p: only the fewest tokens that hold this much probability may be drawn (nucleus sampling, Holtzman et al.,
            2020); None for all. It applies to what `top_k` leaves.
        vocab_size: only tokens below it may be drawn, for models with a padded table; None for all.
        cached: keep keys and values of what has been read. Off, every token re-reads the text: the plain twin.
        past_block: ``reread`` the last `block_size` tokens for every token, so that nothing before them counts; or let
            the cache go round, ``rolling``: a token then looks at the keys of the last `block_size`, which were made of
            what came before those too. With one layer the two are the same, with more they are not.
    """

    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    vocab_size: int | None = None
    cached: bool = True
    past_block: PastBlock = "reread"

    def __post_init__(self) -> None:
        require_choice("past_block", self.past_block, PAST_BLOCK)
        if self.past_block == "rolling" and not self.cached:
            raise UserError("past_block=rolling needs the cache that rolls; leave cached=False out")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} is not a number of at least 0; choose for example 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} leaves no token to draw; choose at least 1, or none for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is outside (0, 1]; choose for example 0.9")
