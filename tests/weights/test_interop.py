"""Weights to and from PyTorch's programs, in the files they write: small random models, exact to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax import convert
from nanogpt_jax.cli.sample import SampleSettings, sample_text
from nanogpt_jax.core.config import GPTConfig, Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import abstract_state, init_params
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.run import loop
from nanogpt_jax.weights import hf_format, loading, nanogpt_format
from nanogpt_jax.weights.nanogpt_format import NanoGPTCheckpoint, moments_of, nanogpt_model_args_of, with_moments
from nanogpt_jax.weights.state_dicts import HEAD, TABLE, params_of, state_dict_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = "To be, or not to be, that is the question:\n" * 40
VOCABULARY = len(set(TEXT))
NANOGPT = GPTConfig(block_size=8, vocab_size=VOCABULARY, n_layer=2, n_head=2, n_embd=16, bias=False)
GPT2 = dataclasses.replace(NANOGPT, bias=True, activation="gelu_new")


def random_params(config: GPTConfig, seed: int = 0) -> Any:
    """Parameters, or what has their shape, without compiling anything."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(GPT(config), 0))
    return jax.tree.map(lambda p: draw.normal(0, 0.3, p.shape).astype(np.float32), shapes)


def assert_same_bits(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def refusal(function: Any, *arguments: Any, **options: Any) -> str:
    """The one line with which something is refused."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def nothing_written(folder: Path) -> Any:
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def tensors_of(state_dict: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in state_dict.items()}


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
            ({"model_type": "llama"}, "model_type='llama' is another architecture"),
            ({"n_inner": 100}, "n_inner=100 is not offered by this model, which has 64 alone"),
            ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06"),
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


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random GPT-2 of Hugging Face's, saved by `save_pretrained` in a folder of its own."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_format.hf_config_of(GPT2))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return model, folder


def state_dict_in(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


TOKENS = np.random.default_rng(0).integers(VOCABULARY, size=(2, 8))
apply = jax.jit(lambda model, params: model.apply({"params": params}, TOKENS), static_argnums=0)


def save_bin(model: Any, folder: Path, shards: int) -> None:
    """`pytorch_model.bin`, whole or in shards with their index: what older versions of transformers wrote."""
    state_dict = model.state_dict()
    names = list(state_dict)
    if shards == 1:
        torch.save(state_dict, folder / "pytorch_model.bin")
        return
    weight_map = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        torch.save({name: state_dict[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class TestHuggingFace:
    def test_their_model_gives_their_logits_here(self, theirs: Any) -> None:
        model, folder = theirs
        weights = loading.open_weights(str(folder))
        ours = loading.build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
        np.testing.assert_allclose(apply(ours, weights.load(ours)), logits_of(model, TOKENS), atol=1e-4)

    @pytest.mark.parametrize("config", [NANOGPT, GPT2, dataclasses.replace(GPT2, tie_word_embeddings=False)])
    def test_our_model_gives_our_logits_there(self, config: GPTConfig, tmp_path: Path) -> None:
        params = random_params(config)
        hf_format.write_hf(tmp_path, config, params)
        model, told = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(told.values())
        np.testing.assert_allclose(logits_of(model.eval(), TOKENS), apply(GPT(config), params), atol=1e-4)
        assert_same_bits(hf_format.read_hf_params(tmp_path, config), params)
        assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0o077 & 0o666 & ~umask()}

    @pytest.mark.parametrize("kind", ["sharded safetensors", "bin", "sharded bin", "half"])
    def test_every_kind_of_file_is_read(self, theirs: Any, kind: str, tmp_path: Path) -> None:
        model, folder = theirs
        expected = params_of(state_dict_in(model), GPT2, "hf")
        if kind == "sharded safetensors":
            model.save_pretrained(tmp_path, max_shard_size="20KB")
            assert (tmp_path / "model.safetensors.index.json").exists()
        elif kind == "half":
            half = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16)
            half.save_pretrained(tmp_path)
            expected = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(np.float32), expected)
        else:
            shutil.copy(folder / "config.json", tmp_path)
            save_bin(model, tmp_path, shards=1 if kind == "bin" else 3)
        assert loading.is_hf_folder(tmp_path)
        assert_same_bits(hf_format.read_hf_params(tmp_path, GPT2), expected)

    @pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "..", 7])
    def test_an_index_cannot_lead_out_of_its_folder(self, place: Any, tmp_path: Path) -> None:
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": {TABLE: place}}))
        assert str(index) in refusal(hf_format.read_hf_params, tmp_path, GPT2)

    def test_a_missing_shard_is_named(self, theirs: Any, tmp_path: Path) -> None:
        save_bin(theirs[0], tmp_path, shards=3)
        (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
        assert "pytorch_model-00002-of-00003.bin is missing" in refusal(hf_format.read_hf_params, tmp_path, GPT2)

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
    def test_truncated_files_are_named(self, theirs: Any, name: str, tmp_path: Path) -> None:
        model, folder = theirs
        shutil.copytree(folder, tmp_path / "hf")
        if name.endswith(".bin"):
            (tmp_path / "hf" / "model.safetensors").unlink()
            save_bin(model, tmp_path / "hf", shards=1)
        path = tmp_path / "hf" / name
        whole = path.read_bytes()
        for keep in (0, 5, 100, -10):
            path.write_bytes(whole[:keep])
            with nothing_written(tmp_path):
                assert str(path) in refusal(convert.main, [str(tmp_path / "hf"), str(tmp_path / "out")])

    def test_gpt2_comes_out_of_the_cache_it_shares_with_transformers(
        self, theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        message = refusal(loading.open_weights, "gpt2-xl")
        assert "gpt2-xl is not in the cache" in message and "go online, or name a folder" in message
        for repository, name in (("openai-community--gpt2", "gpt2"), ("gpt2-medium", "gpt2-medium")):
            snapshot = tmp_path / f"models--{repository}" / "snapshots" / ("0" * 40)
            shutil.copytree(theirs[1], snapshot)
            (snapshot.parent.parent / "refs").mkdir()
            (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
            weights = loading.open_weights(name)
            assert weights.vocab_size == VOCABULARY and weights.settings["activation"] == "gelu_new"
            assert_same_bits(weights.load(GPT(GPT2)), params_of(state_dict_in(theirs[0]), GPT2, "hf"))


class Lab(NamedTuple):
    """A data set, and a run that stands at iteration 3 of its training on it."""

    data_dir: Path
    run: Path
    settings: Settings


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "text.txt").write_text(TEXT)
    prepare_text([folder / "text.txt"], folder / "data" / "words")
    run = folder / "run"
    settings = Settings(
        **vars(NANOGPT), dataset="words", data_dir=str(folder / "data"), out_dir=str(run), batch_size=2, max_iters=3,
        gradient_accumulation_steps=1, eval_iters=1, eval_interval=2, warmup_iters=1, lr_decay_iters=9, beta2=0.98,
        learning_rate=1e-2,
    )  # fmt: skip
    loop.train(settings)
    return Lab(folder / "data", run, settings)


def state_of(run: Path) -> Any:
    checkpoint = loading.open_run(run)
    settings = loading.stored_settings(checkpoint.run)
    model, tx = loading.build_model(settings, checkpoint.run.vocab_size, "cpu"), make_optimizer(settings)
    return checkpoint.state(abstract_state(model, tx))


@pytest.fixture(scope="module")
def ckpt(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as a nanoGPT checkpoint."""
    path = tmp_path_factory.mktemp("nanogpt") / "ckpt.pt"
    assert convert.main([str(lab.run), str(path)]) == 0
    return path


class Evil:
    """An object whose pickle would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class TestNanoGPT:
    def test_a_checkpoint_is_nanogpts(self, lab: Lab, ckpt: Path) -> None:
        document = torch.load(ckpt, weights_only=True)
        theirs = {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"}
        assert set(document) == {*theirs, "tokenizer"} and document["tokenizer"]["type"] == "char"
        assert document["iter_num"] == 3 and document["best_val_loss"] < 4
        assert document["config"]["dataset"] == "words"
        assert set(document["model_args"]) == {f.name for f in dataclasses.fields(GPTConfig)[:7]}
        assert document["model"][HEAD].data_ptr() == document["model"][TABLE].data_ptr()
        decayed, others = document["optimizer"]["param_groups"]
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0) and decayed["betas"] == (0.9, 0.98)
        shapes = [tuple(document["optimizer"]["state"][i]["exp_avg"].shape) for i in decayed["params"]]
        assert shapes == [tuple(t.shape) for name, t in document["model"].items() if t.ndim == 2 and name != HEAD]

    def test_there_and_back_training_stands_where_it_stood(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        assert convert.main([str(ckpt), str(tmp_path / "run"), f"--data_dir={lab.data_dir}"]) == 0
        assert_same_bits(state_of(tmp_path / "run"), state_of(lab.run))
        settings = loading.stored_settings(loading.open_run(tmp_path / "run").run)
        assert dataclasses.replace(settings, out_dir=lab.settings.out_dir) == lab.settings

    def test_training_goes_on_from_a_converted_run(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        runs = [tmp_path / "converted", tmp_path / "copied"]
        convert.main([str(ckpt), str(runs[0]), f"--data_dir={lab.data_dir}"])
        shutil.copytree(lab.run, runs[1])
        losses = [loop.train(Settings(init_from="resume", out_dir=str(run)), {"max_iters": 5}) for run in runs]
        assert losses[0] == losses[1]
        assert_same_bits(*map(state_of, runs))

    def test_pytorchs_adamw_goes_on_where_ours_stood(self, lab: Lab, ckpt: Path) -> None:
        document = torch.load(ckpt, weights_only=True)
        names = [name for name in document["model"] if name != HEAD]
        matrices, vectors = ([n for n in names if (document["model"][n].ndim >= 2) is two] for two in (True, False))
        groups = [{"params": [document["model"][name] for name in group]} for group in (matrices, vectors)]
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        optimizer.load_state_dict(document["optimizer"])
        state, gradient = state_of(lab.run), random_params(NANOGPT, seed=1)
        tx = make_optimizer(dataclasses.replace(lab.settings, grad_clip=0.0, decay_lr=False))
        # Without a schedule the chain has one counter less; AdamW's moments fit all the same.
        opt_state = with_moments(tx.init(state.params), moments_of(state.opt_state), step=3)
        updates, _ = jax.jit(tx.update)(gradient, opt_state, state.params)
        for name, value in state_dict_of(gradient, NANOGPT, "nanogpt").items():
            document["model"][name].grad = torch.tensor(value)
        optimizer.step()
        ours = state_dict_of(jax.jit(optax.apply_updates)(state.params, updates), NANOGPT, "nanogpt")
        for name in names:
            np.testing.assert_allclose(ours[name], document["model"][name].numpy(), atol=1e-6)

    def test_a_checkpoint_of_compiled_nanogpt_without_an_optimizer(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        model = {f"_orig_mod.{name}": tensor for name, tensor in torch.load(ckpt)["model"].items()}
        args = {name: value for name, value in torch.load(ckpt)["model_args"].items() if name != "dropout"}
        torch.save({"model": model, "model_args": args}, tmp_path / "old.pt")
        assert_same_bits(NanoGPTCheckpoint(tmp_path / "old.pt").params(), state_of(lab.run).params)
        tokenizer = f"--tokenizer={lab.data_dir / 'words' / 'meta.json'}"
        message = refusal(convert.main, [str(tmp_path / "old.pt"), str(tmp_path / "run")])
        assert f"does not say what its {VOCABULARY} tokens are" in message and "--tokenizer=PATH" in message
        assert convert.main([str(tmp_path / "old.pt"), str(tmp_path / "run"), tokenizer]) == 0
        state = state_of(tmp_path / "run")
        assert int(state.step) == 0 and moments_of(state.opt_state).count == 0

    def test_it_evaluates_to_the_loss_that_pytorch_gives(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        convert.main([str(ckpt), str(tmp_path / "hf"), "--to=hf"])
        model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
        tokens = np.fromfile(lab.data_dir / "words" / "val.bin", np.uint16).astype(np.int64)
        total, size = 0.0, NANOGPT.block_size
        for start in range(0, len(tokens) - 1, size):
            window = torch.tensor(tokens[start : start + size + 1])
            logits = torch.tensor(logits_of(model, window[None, :-1].numpy()))[0]
            total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        for source in (ckpt, tmp_path / "hf", lab.run):
            settings = dataclasses.replace(lab.settings, init_from=str(source), eval_only=True)
            assert loop.train(settings) == pytest.approx(total / (len(tokens) - 1), abs=1e-4)

    def test_sampling_takes_the_tokenizer_of_its_data_set(
        self, lab: Lab, ckpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(lab.data_dir.parent)
        for source in (ckpt, lab.run):
            sample_text(SampleSettings(init_from=str(source), start="To", num_samples=1, max_new_tokens=5))
        one, other = capsys.readouterr().out.split("---------------\n")[:2]
        assert one == other and one.startswith("To") and len(one) == 8

    def test_code_in_a_checkpoint_is_named_and_not_run(self, theirs: Any, ckpt: Path, tmp_path: Path) -> None:
        evil, trap = Evil(tmp_path / "trap"), tmp_path / "evil"
        trap.mkdir()
        torch.save({"model": {"a": evil}, "model_args": {}}, trap / "zip.pt")
        torch.save({"model": {"a": evil}}, trap / "legacy.pt", _use_new_zipfile_serialization=False)
        (trap / "raw.pt").write_bytes(pickle.dumps({"model": evil}))
        shutil.copy(theirs[1] / "config.json", trap)
        torch.save({"a": evil}, trap / "pytorch_model.bin")
        with nothing_written(tmp_path):
            for source in (trap / "zip.pt", trap / "legacy.pt", trap / "raw.pt", trap):
                message = refusal(convert.main, [str(source), str(tmp_path / "out")])
                assert "posix.mkdir" in message and str(source) in message

    @pytest.mark.parametrize("keep", [0, 5, 100, -10])
    def test_a_truncated_checkpoint_is_named(self, ckpt: Path, keep: int, tmp_path: Path) -> None:
        (tmp_path / "cut.pt").write_bytes(ckpt.read_bytes()[:keep])
        with nothing_written(tmp_path):
            assert "cut.pt" in refusal(convert.main, [str(tmp_path / "cut.pt"), str(tmp_path / "out")])

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("model_args", lambda a: {**a, "n_layer": 3}, "h.2.ln_1.weight has shape none at all where the model has"),
            ("model_args", lambda a: {**a, "n_layer": 1}, "h.1.ln_1.weight has shape (16,) where the model has none"),
            ("model_args", lambda a: {**a, "block_size": 9}, "wpe.weight has shape (8, 16) where the model has (9,"),
            ("model_args", lambda a: {**a, "flash": 1}, "model_args has 'flash'"),
            ("model", lambda m: [], "is not a nanoGPT checkpoint (it has no 'model')"),
            ("model", lambda m: {**m, TABLE: 3}, "is damaged, or of another program"),
            ("config", lambda c: {**c, "batch_size": -1}, "batch_size=-1 is smaller than 1"),
            ("config", lambda c: [], "is damaged, or of another program"),
            ("iter_num", lambda i: "3", "iter_num='3' is a str"),
            ("optimizer", lambda o: {**o, "state": {0: o["state"][0]}}, "optimizer is damaged, or of another program"),
            ("optimizer", lambda o: {**o, "param_groups": o["param_groups"][:1]}, "moments of 10 tensors where the"),
            ("optimizer", lambda o: {**o, "state": o["state"] | {0: o["state"][1]}}, "wte.weight has shape (8, 16)"),
        ],
    )  # fmt: skip
    def test_a_checkpoint_that_does_not_fit_is_refused(
        self, lab: Lab, ckpt: Path, part: str, change: Any, message: str, tmp_path: Path
    ) -> None:
        document = torch.load(ckpt)
        torch.save({**document, part: change(document[part])}, tmp_path / "odd.pt")
        with nothing_written(tmp_path):
            argv = [str(tmp_path / "odd.pt"), str(tmp_path / "run"), f"--data_dir={lab.data_dir}"]
            assert message in refusal(convert.main, argv)

    def test_without_pytorch_a_line_says_what_to_install(self, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        assert "pip install -e '.[torch]'" in refusal(loading.open_weights, str(ckpt))


class TestConvert:
    def test_what_exists_is_replaced_only_when_asked(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        argv = [str(lab.run), str(out)]
        assert convert.main(argv) == 0
        assert "out exists; add --overwrite" in refusal(convert.main, argv)
        assert convert.main([str(ckpt), str(out), "--overwrite", "--to=run", f"--data_dir={lab.data_dir}"]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "config.json"]
        assert list(tmp_path.iterdir()) == [out]
        (out / "notes.txt").touch()
        assert "holds notes.txt, which no conversion wrote" in refusal(convert.main, [*argv, "--overwrite"])
        assert "is a folder" in refusal(convert.main, [argv[0], str(tmp_path / "x.pt"), "--to=run"])
        (tmp_path / "ckpt.pt").write_text("old")
        assert convert.main([str(lab.run), str(tmp_path / "ckpt.pt"), "--overwrite"]) == 0
        assert NanoGPTCheckpoint(tmp_path / "ckpt.pt").step == 3

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["missing", "x"], "missing holds no run"),
            (["RUN", "x", "--to=pt"], "to='pt' is not one of run, hf"),
            (["RUN", "x", "--tokenizer=y/meta.json"], "y is not a prepared data set"),
            (["HF", "x.pt"], "activation=gelu_new has no equal in nanoGPT"),
            (["HF", "x", "--tokenizer=nowhere/meta.json"], "nowhere is not a prepared data set"),
            (["RUN", "x", "--overwrote"], "there is no setting --overwrote; did you mean --overwrite?"),
            (["RUN"], "DST"),
        ],
    )  # fmt: skip
    def test_wrong_use_is_one_line(
        self, lab: Lab, theirs: Any, argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        named = {"RUN": str(lab.run), "HF": str(theirs[1])}
        with nothing_written(tmp_path):
            assert message in refusal(convert.main, [named.get(argument, argument) for argument in argv])

    def test_a_bigram_stays_at_home(self, lab: Lab, tmp_path: Path) -> None:
        loop.train(dataclasses.replace(lab.settings, model="bigram", out_dir=str(tmp_path / "run"), max_iters=1))
        assert "model=bigram" in refusal(convert.main, [str(tmp_path / "run"), str(tmp_path / "hf")])
        assert "model=bigram" in refusal(convert.main, [str(tmp_path / "run"), str(tmp_path / "x.pt")])


class TestStartingFromWeights:
    def test_a_smaller_block_size_crops_the_positions(self, lab: Lab, ckpt: Path) -> None:
        table = state_of(lab.run).params["wpe"]["embedding"]
        cropped = GPT(dataclasses.replace(NANOGPT, block_size=5))
        for source in (lab.run, ckpt):
            params = loading.open_weights(str(source)).load(cropped)
            np.testing.assert_array_equal(params["wpe"]["embedding"], table[:5])
        settings = dataclasses.replace(lab.settings, init_from=str(ckpt), block_size=5, eval_only=True)
        assert loop.train(settings, {"block_size"}) != loop.train(settings)

    def test_other_shapes_that_are_asked_for_must_be_those_of_the_weights(self, lab: Lab) -> None:
        settings = dataclasses.replace(lab.settings, init_from=str(lab.run), block_size=9, n_layer=3, eval_only=True)
        message = refusal(loop.train, settings, {"block_size"})
        assert "block_size=9 does not fit" in message and "block_size=8; leave it out, or smaller" in message
        assert "n_layer=3 does not fit" in refusal(loop.train, settings, {"n_layer"})
        assert loop.train(settings) < 4  # a preset gives way

    def test_a_data_set_must_fit_the_weights(self, lab: Lab, theirs: Any, capsys: Any, tmp_path: Path) -> None:
        (tmp_path / "text.txt").write_text(TEXT + "§")
        prepare_text([tmp_path / "text.txt"], tmp_path / "data" / "words")
        settings = dataclasses.replace(lab.settings, init_from=str(theirs[1]), eval_only=True)
        loop.train(settings)
        assert f"does not say what its tokens are: taking them for those of {lab.data_dir}" in capsys.readouterr().out
        other = dataclasses.replace(settings, data_dir=str(tmp_path / "data"))
        assert f"has {VOCABULARY + 1} tokens where the weights in" in refusal(loop.train, other)
        assert "another tokenizer" in refusal(loop.train, dataclasses.replace(other, init_from=str(lab.run)))


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
