"""What the programs for GPUs and TPUs are before a compiler has seen them: lowered here, where there is neither.

tests/run/compile_only has what only a compiled program shows.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.sampling import generate
from nanogpt_jax.core.train_step import Batch, abstract_state, make_train_step
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.presets import preset

B, T, V = 4, 256, 8192
SETTINGS = preset(
    "gpt2", n_layer=2, n_head=2, n_embd=128, block_size=T, vocab_size=V, batch_size=B, gradient_accumulation_steps=1
)
LLAMA = dict(position="rope", norm="rms", activation="swiglu", n_kv_head=1, qk_norm=True, tie_word_embeddings=False)
KERNELS = {"cuda": {"__cudnn$fmhaSoftmax"}, "tpu": {"tpu_custom_call"}}
BACKWARD = {"cuda": {"__cudnn$fmhaSoftmaxBackward"}, "tpu": set()}

each_platform = pytest.mark.parametrize("platform", ["cuda", "tpu"])


@pytest.fixture(autouse=True)
def a_cudnn(monkeypatch):
    """Lowering asks which cuDNN there is, and there is none."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def model_for(platform, **changes):
    settings = preset("gpt2", **{**vars(SETTINGS), **changes})
    return build_model(settings, V, "gpu" if platform == "cuda" else platform), make_optimizer(settings)


def lowered(platform, jitted, *arguments):
    """The program's text, and the shapes of all arrays in it."""
    text = jitted.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return text, {tuple(map(int, dims.split("x"))) for dims in re.findall(r"tensor<(\d+(?:x\d+)*)x\w+>", text)}


def lowered_step(platform, **changes):
    model, tx = model_for(platform, **changes)
    state, tokens = abstract_state(model, tx), jax.ShapeDtypeStruct((B, T), jnp.int32)
    return state, *lowered(platform, make_train_step(model, tx).__wrapped__, state, Batch(tokens, tokens))


@each_platform
@pytest.mark.parametrize("blocks", [{}, LLAMA], ids=["gpt2", "llama"])
def test_a_step_has_its_platform_s_attention_and_nothing_as_large_as_scores_or_logits(platform, blocks):
    _, text, shapes = lowered_step(platform, **blocks)
    assert set(re.findall(r"custom_call @([\w$]+)", text)) == KERNELS[platform] | BACKWARD[platform]
    assert (B * T, 128) in shapes  # they are found
    assert [shape for shape in shapes if shape.count(T) > 1] == []
    assert max(math.prod(shape) for shape in shapes if V in shape and shape != (V, 128)) == B * T * V // 8


@each_platform
def test_a_step_takes_its_state_s_memory(platform):
    state, text, _ = lowered_step(platform)
    assert len(re.findall(r"tf\.aliasing_output|jax\.buffer_donor", text)) == len(jax.tree.leaves(state))


@each_platform
def test_past_the_block_a_text_is_read_by_that_kernel_too(platform):
    model, tx = model_for(platform)
    params, prompt = abstract_state(model, tx).params, jax.ShapeDtypeStruct((10,), jnp.int32)

    @jax.jit
    def texts(params, prompt, key):
        return generate(model, params, prompt, key, max_new_tokens=T, num_samples=2)

    text, shapes = lowered(platform, texts, params, prompt, jax.random.key(0))
    assert set(re.findall(r"custom_call @([\w$]+)", text)) == KERNELS[platform]
    assert (2, T, V) not in shapes and (2 * T, V) not in shapes  # logits of one position alone
