"""Settings are valid or do not exist."""

import dataclasses
from typing import get_args, get_type_hints

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.run.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name):
    assert preset(name).gpt_config(50257 if "gpt2" in name else 65).n_layer >= 1


def test_presets_are_those_of_the_references():
    cpu = preset("shakespeare_char_cpu")
    shape = (cpu.n_layer, cpu.n_head, cpu.n_embd, cpu.block_size, cpu.batch_size, cpu.max_iters)
    assert shape == (4, 4, 128, 64, 12, 2000)
    gpu = preset("shakespeare_char")
    shape = (gpu.n_layer, gpu.n_head, gpu.n_embd, gpu.block_size, gpu.batch_size, gpu.dropout)
    assert shape == (6, 6, 384, 256, 64, 0.2)
    xl = preset("gpt2_xl")
    shape = (xl.n_layer, xl.n_head, xl.n_embd, xl.block_size, xl.gpt_config(50257).vocab_size)
    assert shape == (48, 25, 1600, 1024, 50304)


def test_presets_of_models_of_today_have_as_many_parameters_as_those() -> None:
    for name, parameters in (("smollm2_135m", 134_515_008), ("qwen3_0_6b", 596_049_920)):
        model = GPT(preset(name).gpt_config(1))
        shapes = jax.eval_shape(lambda model=model: init_params(model, 0))
        assert sum(p.size for p in jax.tree.leaves(shapes)) == parameters
        assert preset(name).tokens_per_iter == preset("gpt2").tokens_per_iter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 130, "n_head": 4}, r"n_embd=130 is not a multiple of n_head=4; try n_embd=128"),
        ({"n_head": 4, "n_kv_head": 3}, "n_head=4 is not a multiple of n_kv_head=3; choose a divisor of it"),
        ({"n_kv_head": 0}, "n_kv_head=0 is smaller than 1"),
        (
            {"position": "rope", "head_size": 3},
            "position=rope turns pairs, and heads of 3 are odd; choose an even head_",
        ),
        ({"rope_theta": 500.0}, "rope_theta=500.0 has no meaning with position=learned; add position=rope"),
        ({"rope_scaling": "llama3:8,1,4,8192"}, "rope_scaling=llama3:8,1,4,8192 has no meaning with position=learned"),
        ({"position": "rope", "rope_scaling": "yarn"}, "rope_scaling='yarn' is no scaling of rotary frequencies; give"),
        ({"position": "rope", "rope_theta": 0.0}, "rope_theta=0.0 is not a finite number above 0"),
        ({"logit_softcap": -1.0}, r"logit_softcap=-1\.0 is not a finite number above 0"),
        ({"norm_epsilon": float("inf")}, "norm_epsilon=inf is not a finite number above 0"),
        ({"proj_init_scale": -1}, r"proj_init_scale=-1\.0 is not a finite number of at least 0"),
        ({"norm": "batch"}, "norm='batch' is not one of layer, rms"),
        ({"n_layer": 10**6}, "n_layer=1000000 is larger than 10000"),
        ({"n_embd": 2**31 - 4}, r"n_embd=2147483644 with n_layer=4 .* 2e\+20 parameters, .*; lower one of them"),
        ({"n_layer": 0}, "n_layer=0 is smaller than 1"),
        ({"dropout": 1.0}, r"dropout=1.0 is outside \[0, 1\)"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not a finite number"),
        ({"beta2": 1.0}, r"beta2=1.0 is outside \[0, 1\)"),
        ({"vocab_size": 2**24 + 1}, "vocab_size=16777217 is larger than 16777216"),
        ({"batch_size": 2.5}, "batch_size=2.5 is a float; give a int"),
        ({"batch_size": True}, "batch_size=True is a bool"),
        ({"dtype": "float64"}, "dtype='float64' is not one of auto, float32, bfloat16"),
        ({"activation": "swish"}, "activation='swish' is not one of"),
        ({"lm_head_bias": True}, "add tie_word_embeddings=False"),
        ({"seed": -1}, "seed=-1 is smaller than 0"),
        ({"out_dir": ""}, "out_dir=''"),
    ],
)
def test_what_is_out_of_range_is_named_with_its_value_and_the_limit(changes, message):
    with pytest.raises(UserError, match=message) as error:
        preset("shakespeare_char_cpu", **changes)
    assert "\n" not in str(error.value)


NUMBERS = [name for name, hint in get_type_hints(Settings).items() if int in (hint, *get_args(hint))]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [2**32, 10**20])
def test_a_number_beyond_its_32_bits_is_refused_whatever_it_is_of(name, value):
    job = {"coordinator": "host:1", "num_processes": 2, "process_id": 1}
    with pytest.raises(
        UserError, match=rf"^{name}={value} is larger than (2147483647|4294967295|16777216) \(.*; choose"
    ):
        preset("shakespeare_char_cpu", **job | {name: value})


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(UserError, match="vocab_size=60 is smaller than the tokenizer's 65"):
        preset("shakespeare_char_cpu", vocab_size=60).gpt_config(65)
    assert preset("shakespeare_char_cpu", vocab_size=128).gpt_config(65).vocab_size == 128


def test_there_is_no_such_preset():
    with pytest.raises(UserError, match=r"no preset 'gpt5'; choose one of bigram, gpt_dev.*; did you mean gpt2"):
        preset("gpt5")


FIELDS = [f.name for f in dataclasses.fields(Settings)]
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_values_give_settings_or_one_line(changes):
    try:
        settings = Settings(**changes)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(settings.gpt_config(1), GPTConfig)
