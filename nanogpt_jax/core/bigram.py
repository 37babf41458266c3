"""The bigram model, with which the notebook begins: a token says what comes next, and nothing before it does."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nanogpt_jax.core import ops
from nanogpt_jax.core.attention import Position
from nanogpt_jax.core.layers import Text, require_text
from nanogpt_jax.core.model import Cache, Segments
from nanogpt_jax.core.shape import GPTConfig


class Bigram(nn.Module):
    """The smallest language model: row t of a table (V, V) holds the logits of what follows token t.

    It remembers nothing, so its cache is empty; otherwise it answers to the same calls as `model.GPT`.
    """

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "no"

    def setup(self) -> None:
        size = self.config.vocab_size
        # PyTorch's nn.Embedding starts from N(0, 1), and so does the notebook.
        self.wte = nn.Embed(size, size, embedding_init=nn.initializers.normal(1.0))

    def __call__(self, idx: Text, *, train: bool = False) -> Float[Array, "B T V"]:
        """Logits of the token after each position."""
        require_text(idx, self.config.vocab_size)
        return self.wte(idx)

    def loss(
        self,
        idx: Text,
        targets: Int[ops.AnyArray, "B T"],
        weights: Float[ops.AnyArray, "B T"],
        segments: Segments = None,
        *,
        train: bool = False,
    ) -> Float[Array, ""]:
        """As `model.GPT.loss`; a token sees no other in any case."""
        return ops.weighted_cross_entropy(self(idx), targets, weights)

    def logits_at(self, idx: Text, index: Int[Array, ""] | int) -> Float[Array, "B V"]:
        """As `model.GPT.logits_at`."""
        return self.wte(idx[:, index])

    def decode(
        self, idx: Text, cache: Cache, position: Position, before: Text | None = None
    ) -> tuple[Float[Array, "B V"], Cache]:
        """As `model.GPT.decode`."""
        return self.wte(idx[:, -1]), cache

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache: there is nothing to remember."""
        return ()
