"""Text as it is made: the loop that draws it stretch by stretch, and what shows each stretch."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import flax.linen as nn
import numpy as np
from jaxtyping import PRNGKeyArray

from nanogpt_jax.core import sampling
from nanogpt_jax.core.sampling_config import SamplingConfig
from nanogpt_jax.data.tokenizer import Tokenizer

_TOKENS_AT_A_TIME = 16


@dataclass(frozen=True)
class Stream:
    """A model that is ready to draw texts.

    Attributes:
        model: the module, of which `weights` are as `decoding_weights` has them.
        config: how a token is drawn, under `key`.
        tokenizer: what the tokens mean.
        stops: the tokens that end a text, which are no part of it.
    """

    model: nn.Module
    config: SamplingConfig
    weights: sampling.Weights
    key: PRNGKeyArray
    tokenizer: Tokenizer
    stops: Sequence[int] = ()

    def texts(self, prompt: np.ndarray, samples: Sequence[int], max_new_tokens: int) -> Iterator[list[np.ndarray]]:
        """The continuations so far of `prompt`, tokens (P,), a row (N,) for each of `samples`, as they grow.

        The last ones are whole: each has ended, or is `max_new_tokens` long. A sample's text depends on its number, not
        on the others. Raises `UserError` for an empty prompt.
        """
        numbers = np.asarray(samples, np.int32)
        generation, first = sampling.begin(self.model, prompt, numbers, max_new_tokens)
        end = first + max_new_tokens
        generation = sampling.prefill(self.model, self.weights, generation, first)
        for reach in (*range(first + _TOKENS_AT_A_TIME, end, _TOKENS_AT_A_TIME), end):
            generation = sampling.extend(self.model, self.config, self.weights, generation, self.key, reach)
            texts = [_before(self.stops, text) for text in np.asarray(generation.tokens)[:, first:reach]]
            yield texts
            if all(len(text) < reach - first for text in texts):
                break


def _before(stops: Sequence[int], text: np.ndarray) -> np.ndarray:
    """The tokens (N,) of a text up to the first of `stops`."""
    ends = np.flatnonzero(np.isin(text, stops))
    return text[: ends[0]] if ends.size else text


class Writer:
    """Prints one text that grows, holding back bytes that are not yet a whole character."""

    def __init__(self, tokenizer: Tokenizer, start: str = "") -> None:
        """`start` is printed before the text."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = 0
        _print(start)

    def __call__(self, text: np.ndarray) -> None:
        """Print what is new of the tokens (N,) of the text so far."""
        _print(self._decoder.decode(self._tokenizer.decode_bytes(text[self._shown :])))
        self._shown = len(text)

    def end(self, after: str) -> None:
        """Print what was held back, and `after`."""
        _print(self._decoder.decode(b"", final=True) + after)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
