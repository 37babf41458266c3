"""Parameters as PyTorch's programs name and lay them, there and back, exact to the bit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.weights import hf_format, nanogpt_format
from nanogpt_jax.weights.nanogpt_format import nanogpt_model_args_of
from nanogpt_jax.weights.state_dicts import HEAD, TABLE, params_of, state_dict_of
from tests.helpers.foreign import GPT2, NANOGPT, random_params
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class TestMapping:
    @settings(max_examples=15, deadline=None)
    @given(
        st.builds(
            lambda heads, size, **rest: GPTConfig(n_head=heads, n_embd=heads * size, **rest),
            heads=st.integers(1, 3), size=st.integers(1, 4), n_layer=st.integers(1, 2), vocab_size=st.integers(1, 9),
            block_size=st.integers(1, 9), bias=st.booleans(), qkv_bias=st.sampled_from([None, True, False]),
            tie_word_embeddings=st.booleans(), activation=st.sampled_from(["gelu", "gelu_new", "relu"]),
        ),
    )  # fmt: skip
    def test_there_and_back_is_exact(self, config: GPTConfig) -> None:
        params = random_params(config)
        assert_same_bits(params_of(state_dict_of(params, config, "hf"), config, "hf"), params)
        told = hf_format.gpt_config_of_hf(json.loads(json.dumps(hf_format.hf_config_of(config))))
        assert told == dataclasses.replace(config, bias=True, qkv_bias=None)

        plain = dataclasses.replace(config, activation="gelu", tie_word_embeddings=True, qkv_bias=None)
        params = random_params(plain)
        assert_same_bits(params_of(state_dict_of(params, plain, "nanogpt"), plain, "nanogpt"), params)
        assert nanogpt_format.gpt_config_of_nanogpt(nanogpt_model_args_of(plain)) == plain

    def test_names_order_and_axes_are_those_of_pytorch(self) -> None:
        config = dataclasses.replace(GPT2, activation="gelu", n_layer=11)  # the tenth comes after the second
        params = random_params(config)
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_format.hf_config_of(config))).state_dict()
        hf, nanogpt = (state_dict_of(params, config, layout) for layout in ("hf", "nanogpt"))
        assert [(name, value.shape) for name, value in hf.items()] == [(n, tuple(v.shape)) for n, v in theirs.items()]
        assert list(nanogpt) == list(hf)
        for name, value in nanogpt.items():
            is_linear = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            np.testing.assert_array_equal(value, hf[name].T if is_linear else hf[name])

    def test_what_programs_add_and_leave_out_makes_no_difference(self) -> None:
        params = random_params(GPT2)
        plain = state_dict_of(params, GPT2, "hf")
        bare = {name.removeprefix("transformer."): value for name, value in plain.items() if name != HEAD}
        mask = np.tril(np.ones((1, 1, 8, 8), bool))
        for variant in (
            {f"_orig_mod.{name}": value for name, value in plain.items()},
            {**bare, "h.0.attn.bias": mask, "h.1.attn.masked_bias": np.float32(-1e4)},
            {**plain, "transformer.h.1.attn.bias": mask},
        ):
            assert_same_bits(params_of(variant, GPT2, "hf"), params)

    @pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
    def test_sixteen_bits_are_widened_exactly(self, dtype: Any) -> None:
        narrow = {name: value.astype(dtype) for name, value in state_dict_of(random_params(GPT2), GPT2, "hf").items()}
        wide = state_dict_of(params_of(narrow, GPT2, "hf"), GPT2, "hf")
        assert_same_bits(wide, {name: value.astype(np.float32) for name, value in narrow.items()})

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("ln_f.bias", None, "ln_f.bias has shape none at all where the model has (16,)"),
            ("h.2.ln_1.bias", np.ones(16, np.float32), "h.2.ln_1.bias has shape (16,) where the model has none at all"),
            ("wpe.weight", np.ones((9, 16), np.float32), "wpe.weight has shape (9, 16) where the model has (8, 16)"),
            ("ln_f.bias", np.ones(16, np.int32), "ln_f.bias is int32[16] where the model has float32[16]"),
            ("ln_f.bias", np.full(16, 1e300), "ln_f.bias is float64 with numbers beyond float32's"),
            ("score.weight", np.ones((2, 16), np.float32), "score.weight has shape (2, 16) where the model has none"),
        ],
    )  # fmt: skip
    def test_a_tensor_that_does_not_fit_is_named(self, name: str, value: Any, message: str) -> None:
        state_dict = state_dict_of(random_params(GPT2), GPT2, "hf")
        state_dict.pop(f"transformer.{name}", None)
        if value is not None:
            state_dict[f"transformer.{name}"] = value
        assert f"tensor transformer.{message}" in refusal(params_of, state_dict, GPT2, "hf")

    def test_a_head_that_should_be_tied_and_is_not_is_named(self) -> None:
        state_dict = state_dict_of(random_params(GPT2), GPT2, "hf")
        state_dict[HEAD] = -state_dict[HEAD]
        assert f"tensor {HEAD} differs from {TABLE}" in refusal(params_of, state_dict, GPT2, "hf")

    def test_biases_that_the_model_lacks_are_zero_or_refused(self) -> None:
        params = random_params(NANOGPT)
        state_dict = state_dict_of(params, NANOGPT, "hf")
        assert not state_dict["transformer.h.0.attn.c_attn.bias"].any()
        state_dict["transformer.ln_f.bias"] = np.ones(16, np.float32)
        assert "transformer.ln_f.bias has shape (16,)" in refusal(params_of, state_dict, NANOGPT, "hf")

    @pytest.mark.parametrize(
        ("layout", "changes", "message"),
        [
            ("nanogpt", {"activation": "gelu_new"}, "activation=gelu_new has no equal in nanoGPT, which has gelu"),
            ("nanogpt", {"activation": "relu"}, "activation=relu"),
            ("nanogpt", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
            ("nanogpt", {"qkv_bias": True}, "qkv_bias=True has no equal in nanoGPT, which has False alone"),
            ("nanogpt", {"norm_epsilon": 1e-6}, "norm_epsilon=1e-06 has no equal in nanoGPT, which has 1e-05 alone"),
            ("nanogpt", {"position": "rope"}, "position=rope has no equal in nanoGPT, which has learned alone"),
            ("hf", {"norm": "rms"}, "norm=rms has no equal in"),
            ("hf", {"qk_norm": True}, "qk_norm=True has no equal in"),
            ("hf", {"activation": "swiglu"}, "activation=swiglu has no equal in"),
            ("hf", {"n_kv_head": 1}, "n_kv_head=1 has no equal in"),
            ("hf", {"head_size": 6}, "head_size=6 has no equal in"),
            ("nanogpt", {"mlp_size": 6}, "mlp_size=6 has no equal in nanoGPT, which has 64 alone"),
            ("hf", {"logit_softcap": 6.0}, "logit_softcap=6.0 has no equal in"),
            ("nanogpt", {"token_shift": True}, "token_shift=True has no equal in"),
            ("hf", {"tie_word_embeddings": False, "lm_head_bias": True}, "lm_head_bias=True has no equal in"),
        ],
    )  # fmt: skip
    def test_what_the_other_cannot_express_is_refused(self, layout: Any, changes: Any, message: str) -> None:
        config = dataclasses.replace(NANOGPT, **changes)
        assert message in refusal(state_dict_of, random_params(config), config, layout)
        assert message in refusal(hf_format.hf_config_of if layout == "hf" else nanogpt_model_args_of, config)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "mistral"}, "model_type='mistral' is another architecture; name one of gpt2, llama, qwen3"),
            ({"n_inner": 0}, "mlp_size=0 is smaller than 1"),
            ({"layer_norm_epsilon": 0.0}, "norm_epsilon=0.0 is not a finite number above 0"),
            ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
            ({"add_cross_attention": True}, "add_cross_attention=True"),
            ({"activation_function": "silu"}, "activation_function='silu' is not one of"),
            ({"n_embd": "16"}, "n_embd='16' is a str"),
            ({"n_head": 3}, "n_embd=16 is not a multiple of n_head=3"),
        ],
    )  # fmt: skip
    def test_other_settings_of_hugging_face_are_refused(self, changes: Any, message: str) -> None:
        assert message in refusal(hf_format.gpt_config_of_hf, hf_format.hf_config_of(GPT2) | changes)

    @pytest.mark.parametrize("args", [{"rope": True}, {"n_layer": "2"}, {"n_layer": 0}, [1]])
    def test_other_model_args_are_refused(self, args: Any) -> None:
        refusal(nanogpt_format.gpt_config_of_nanogpt, args)
