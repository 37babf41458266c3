"""Text from a model, as a pure function of (parameters, prompt, key): prefill, one decode step, and the loop.

The loop is one jitted `lax.while_loop`, free of `lax.scan`. The token at position p of sample s is drawn under a key
derived from s and p alone, so the same text comes out one sample at a time or many, streamed or at once, cached or not.
Past `block_size` the model reads the last `block_size` tokens anew for every token, which is what nanoGPT does. Where
positions are rotary its memory may roll instead, and a token costs the same at any length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, Shaped, UInt32

from nanogpt_jax.core.decoding_weights import decoding_weights
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.layers import require_tokens
from nanogpt_jax.core.limits import require_at_least
from nanogpt_jax.core.model import GPT, Cache
from nanogpt_jax.core.ops import AnyArray
from nanogpt_jax.core.sampling_config import Quantize, SamplingConfig
from nanogpt_jax.core.switches import as_promised
from nanogpt_jax.core.train_step import Params

Prompt = Int[AnyArray, " P"] | Int[AnyArray, "1 P"] | Shaped[AnyArray, "..."] | Sequence[Any]
"""One text's tokens: integers (P,) or, as nanoGPT has it, (1, P). `UserError` says what is wrong with others."""

Weights = dict[str, Any]
"""What `decoding_weights` makes of a model's parameters."""

# Below this, dividing would overflow; and there the likeliest token is as certain as it can be.
_COLDEST = 1e-30
_SHORTEST_BUFFER = 16
_FIRST_STAGE = 64


class Generation(NamedTuple):
    """Texts under way: a buffer of tokens of which the first `length` are there, and the model's memory of them.

    `offset` counts the tokens of the prompt that came before the buffer, so that positions are those of the text. The
    cache is empty until `prefill`.
    """

    tokens: Int[Array, "B L"]
    length: Int[Array, ""]
    offset: Int[Array, ""]
    samples: Int[Array, " B"]
    cache: Cache


@as_promised
def generate(
    model: nn.Module,
    params: Params,
    prompt: Prompt,
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    config: SamplingConfig = SamplingConfig(),
    quantize: Quantize = "none",
) -> Int[Array, "{num_samples} {max_new_tokens}"]:
    """`num_samples` continuations of `prompt`, each `max_new_tokens` long, drawn under `key`, without the prompt.

    The tokens of a sample depend on `key` and its index alone, however many are drawn with it. `config` says how tokens
    are drawn and what is done past `block_size`, `quantize` whether from weights in int8.

    The prompt is one text of at least one token, of which the model reads the last `block_size`; its length is static
    under `jax.jit`, as are the model and all that is given by name. Several prompts are mapped over with `jax.vmap`.
    Raises `UserError` for a prompt that is empty, of another shape, or outside the vocabulary.
    """
    weights = decoding_weights(model, params, quantize)
    return continuations(model, config, weights, prompt, key, max_new_tokens, num_samples)


def continuations(
    model: nn.Module,
    config: SamplingConfig,
    weights: Weights,
    prompt: Prompt,
    key: PRNGKeyArray,
    max_new_tokens: int,
    num_samples: int,
) -> Int[Array, "{num_samples} {max_new_tokens}"]:
    """As `generate`, from weights that are laid out for decoding: what many texts from one model share."""
    require_at_least("num_samples", num_samples, 1)
    samples = jnp.arange(num_samples, dtype=jnp.int32)
    generation, start = begin(model, prompt, samples, max_new_tokens)
    if config.cached:
        generation = prefill(model, weights, generation, start)
    done = extend(model, config, weights, generation, key, start + max_new_tokens)
    return done.tokens[:, start : start + max_new_tokens]


def begin(
    model: nn.Module, prompt: Prompt, samples: Int[AnyArray, " B"], max_new_tokens: int
) -> tuple[Generation, int]:
    """A generation that has read nothing yet, and its length: the prompt in a buffer with room for `max_new_tokens`.

    The buffer's size is rounded up to a power of two, so that prompts of many lengths share one compiled program.
    """
    prompt = prompt if isinstance(prompt, jax.Array) else np.asarray(prompt)
    if prompt.ndim == 2 and len(prompt) == 1:  # as nanoGPT has it
        prompt = prompt[0]
    if prompt.ndim != 1:
        raise UserError(f"a prompt of shape {prompt.shape} is not one text, (P,) or (1, P); map over several by vmap")
    if len(prompt) == 0:
        raise UserError("the prompt is empty and there is nothing to continue; give at least one token")
    require_tokens("the prompt's tokens", prompt, model.config.vocab_size)
    require_at_least("max_new_tokens", max_new_tokens, 1)
    offset = max(0, len(prompt) - model.config.block_size)
    length = len(prompt) - offset
    of = jnp if isinstance(prompt, jax.core.Tracer) else np  # numpy compiles nothing anew for every length
    room = _power_of_two(length + max_new_tokens) - length
    text = of.pad(of.asarray(prompt[offset:], of.int32), (0, room))
    tokens = of.broadcast_to(text, (len(samples), len(text)))
    tokens, there, before = jax.device_put((tokens, np.asarray(length, np.int32), np.asarray(offset, np.int32)))
    return Generation(tokens, there, before, jnp.asarray(samples, jnp.int32), cache=()), length


def prefill(model: nn.Module, weights: Weights, generation: Generation, length: int) -> Generation:
    """Read the prompt of `length`, which all texts share, in one pass: the cache then holds its keys and values."""
    window = _window(model, generation)
    read = min(window, _power_of_two(length))
    return generation._replace(cache=_prompt_cache(model, weights, generation.tokens, read, window))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _prompt_cache(model: nn.Module, weights: Weights, tokens: Int[Array, "B L"], read: int, window: int) -> Cache:
    """A cache of `window` positions for each text, after the first `read` tokens of the first one.

    Of these, what follows the prompt does no harm: the cache's entry of a position is written anew when the token of
    that position has been drawn and is read, before anything may look at it.
    """
    _, cache = model.apply(weights, tokens[:1, :read], model.init_cache(1, read), 0, method="decode")
    rest = ((0, 0), (0, window - read), (0, 0))
    return jax.tree.map(lambda once: jnp.pad(jnp.tile(once, (len(tokens), 1, 1)), rest), cache)


def _window(model: nn.Module, generation: Generation) -> int:
    """Tokens that the model looks back on at most."""
    return min(model.config.block_size, generation.tokens.shape[1])


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="generation")
def extend(
    model: nn.Module,
    config: SamplingConfig,
    weights: Weights,
    generation: Generation,
    key: PRNGKeyArray,
    stop: Int[Array, ""] | int,
) -> Generation:
    """Draw tokens until the buffer holds `stop` of them. Calling it bit by bit is how text is streamed.

    With `config.cached`, `generation` must have been through `prefill`.
    """
    require_rotary(model, config)
    window = _window(model, generation)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, generation.samples)

    def cached(g: Generation) -> tuple[Array, Cache]:
        before, last = (jax.lax.dynamic_slice_in_dim(g.tokens, g.length - ago, 1, axis=1) for ago in (2, 1))
        read: Any = model.apply(weights, last, g.cache, g.length - 1, before, method="decode")
        return read

    def uncached(g: Generation) -> tuple[Array, Cache]:
        start = jnp.maximum(g.length - window, 0)
        seen = jax.lax.dynamic_slice_in_dim(g.tokens, start, window, axis=1)
        logits: Any = model.apply(weights, seen, g.length - 1 - start, method="logits_at")
        return logits, g.cache

    def while_shorter_than(
        limit: Array | int, logits_of: Callable[[Generation], tuple[Array, Cache]], g: Generation
    ) -> Generation:
        def step(g: Generation) -> Generation:
            logits, cache = logits_of(g)
            here = jax.vmap(jax.random.fold_in, (0, None))(keys, g.offset + g.length)
            drawn = draw(config, logits, here)
            tokens = jax.lax.dynamic_update_slice_in_dim(g.tokens, drawn[:, None], g.length, axis=1)
            return g._replace(tokens=tokens, length=g.length + 1, cache=cache)

        return jax.lax.while_loop(lambda g: g.length < limit, step, g)

    if config.cached:  # a text that is short yet need not read the whole cache
        for size in _stages(window):
            start = generation._replace(cache=jax.tree.map(lambda whole, size=size: whole[:, :size], generation.cache))
            # A cache of so many tokens gives the logits of the one after them too.
            end = while_shorter_than(jnp.minimum(stop, size + 1), cached, start)
            generation = end._replace(cache=jax.tree.map(_with_start, generation.cache, end.cache))
        if window == generation.tokens.shape[1]:  # no text outgrows it
            return generation
        if config.past_block == "rolling":
            return while_shorter_than(stop, cached, generation)
    return while_shorter_than(stop, uncached, generation)


def require_rotary(model: nn.Module, config: SamplingConfig) -> None:
    """Raise `UserError` if the cache is to roll and the model's positions end with its block."""
    if config.past_block == "rolling" and isinstance(model, GPT) and model.config.position != "rope":
        raise UserError(
            f"past_block=rolling needs rotary positions, and this model has position={model.config.position}; leave it "
            "out, or train with position=rope"
        )


def _with_start(whole: Float[Array, "N S D"], start: Float[Array, "N R D"]) -> Float[Array, "N S D"]:
    return start if start.shape == whole.shape else jax.lax.dynamic_update_slice(whole, start, (0, 0, 0))


def _stages(window: int) -> list[int]:
    """How much of a cache of `window` positions to work on as a text grows: 64, four times that, ..., and all of it."""
    stages = [_FIRST_STAGE]
    while 4 * stages[-1] <= window:
        stages.append(4 * stages[-1])
    return [*(stage for stage in stages if stage < window), window]


def draw(
    config: SamplingConfig, logits: Float[AnyArray, "B V"], keys: Key[Array, " B"] | UInt32[Array, "B 2"]
) -> Int[Array, " B"]:
    """One token for each row of logits, each row under its own key."""
    logits = jnp.asarray(logits)
    if config.vocab_size is not None:
        logits = logits[:, : config.vocab_size]
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if config.temperature < _COLDEST:
        logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / _COLDEST
    else:
        logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        logits = _keep_at_least(logits, _kth_largest(logits, config.top_k))
    if config.top_p is not None and config.top_p < 1:
        logits = _keep_at_least(logits, _nucleus_threshold(logits, config.top_p))
    return jax.vmap(_categorical)(keys, logits)


def _categorical(key: PRNGKeyArray, logits: Float[Array, " V"]) -> Int[Array, ""]:
    """What `jax.random.categorical` draws: the largest of the logits with Gumbel noise added.

    In two steps, the largest number and then its place, because XLA:CPU takes the noise's logarithms one by one where
    they are computed inside `argmax`.
    """
    noisy = logits + jax.random.gumbel(key, logits.shape, jnp.float32, mode="low")
    here = noisy >= jnp.max(noisy)
    last = len(logits) - 1  # where there is no largest, because logits are NaN
    return jnp.min(jnp.where(here, jnp.arange(len(logits), dtype=jnp.int32), last))


def _keep_at_least(logits: Float[Array, "B V"], threshold: Float[Array, "B 1"]) -> Float[Array, "B V"]:
    return jnp.where(logits < threshold, -jnp.inf, logits)


def _kth_largest(logits: Float[Array, "B V"], k: int) -> Float[Array, "B 1"]:
    """The k-th largest logit of each row, found bit by bit by counting: XLA:CPU's `top_k` would sort the whole row."""
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order = jnp.where(bits >= sign, ~bits, bits | sign)  # unsigned integers in the order of the floats
    found = jnp.zeros((len(logits), 1), jnp.uint32)
    for bit in reversed(range(32)):
        higher = found | jnp.uint32(1 << bit)
        enough = jnp.sum((order >= higher).astype(jnp.float32), axis=-1, keepdims=True) >= k
        found = jnp.where(enough, higher, found)
    return jax.lax.bitcast_convert_type(jnp.where(found >= sign, found ^ sign, ~found), jnp.float32)


def _nucleus_threshold(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B 1"]:
    """The smallest logit in the fewest tokens whose probabilities add up to at least `top_p`."""
    falling = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # probability of the tokens ahead of each
    fewest = jnp.min(jnp.where(before < top_p, falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.minimum(fewest, falling[:, :1])  # a `top_p` that float32 rounds to zero leaves the likeliest


def _power_of_two(n: int) -> int:
    return max(_SHORTEST_BUFFER, 1 << (n - 1).bit_length())
