"""Files that the programs they come from are content with: taken as they are, or named for what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_jax import convert
from nanogpt_jax.core.config import Settings
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights import hf_format, loading
from nanogpt_jax.weights.hub import hub_name
from nanogpt_jax.weights.nanogpt_format import NanoGPTCheckpoint, moments_of
from nanogpt_jax.weights.state_dicts import HEAD, TABLE, left_out, params_of, state_dict_of
from tests.helpers.foreign import GPT2, NANOGPT, Lab, random_params
from tests.helpers.hub import at, hub
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits, state_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
huggingface_hub = pytest.importorskip("huggingface_hub")


def old_order(document: dict[str, Any]) -> dict[str, Any]:
    """The optimizer as older versions of nanoGPT have it: by the alphabet, and without decay for the tables."""
    names = [name for name in document["model"] if name != HEAD]
    matrices = [name for name in names if document["model"][name].ndim >= 2]
    ordered = [*matrices, *(name for name in names if name not in matrices)]
    tables = {TABLE, "transformer.wpe.weight"}
    decayed, others = sorted(set(matrices) - tables), sorted(tables | set(names) - set(matrices))
    state = document["optimizer"]["state"]
    groups = [dict(group) for group in document["optimizer"]["param_groups"]]
    groups[0]["params"] = list(range(len(decayed)))
    groups[1]["params"] = list(range(len(decayed), len(names)))
    return {
        "state": {i: state[ordered.index(name)] for i, name in enumerate([*decayed, *others])},
        "param_groups": groups,
    }


class TestNanoGPT:
    @pytest.mark.parametrize(
        ("change", "kept"),
        [
            ({"eval_iters": 0}, {"eval_iters": 200}),
            ({"max_iters": 10_000.0, "eval_interval": 1e3}, {"max_iters": 10_000, "eval_interval": 1000}),
            ({"decay_lr": 0, "always_save_checkpoint": 1}, {"decay_lr": False, "always_save_checkpoint": True}),
            ({"learning_rate": 1}, {"learning_rate": 1.0}),
            ({"lr_decay_iters": 9, "warmup_iters": 9}, {"lr_decay_iters": 9, "warmup_iters": 9}),
        ],
    )  # fmt: skip
    def test_settings_that_it_trains_with_can_be_converted(
        self, lab: Lab, ckpt: Path, change: Any, kept: Any, tmp_path: Path
    ) -> None:
        document = torch.load(ckpt, weights_only=True)
        document["config"] |= change
        torch.save(document, tmp_path / "ckpt.pt")
        assert convert.main([str(tmp_path / "ckpt.pt"), str(tmp_path / "run"), f"--data_dir={lab.data_dir}"]) == 0
        settings = loading.stored_settings(loading.open_run(tmp_path / "run").run)
        assert {name: getattr(settings, name) for name in kept} == kept
        assert_same_bits(state_of(tmp_path / "run"), state_of(lab.run))

    @pytest.mark.parametrize("optimizer", [None, {}, "missing"])
    def test_without_an_optimizer_training_starts_its_moments_anew(
        self, lab: Lab, ckpt: Path, optimizer: Any, tmp_path: Path
    ) -> None:
        document = torch.load(ckpt, weights_only=True) | {"optimizer": optimizer}
        if optimizer == "missing":
            del document["optimizer"]
        torch.save(document, tmp_path / "ckpt.pt")
        assert convert.main([str(tmp_path / "ckpt.pt"), str(tmp_path / "run")]) == 0
        state = state_of(tmp_path / "run")
        assert_same_bits(state.params, state_of(lab.run).params)
        assert int(state.step) == 3 and moments_of(state.opt_state).count == 0

    def test_the_optimizer_of_older_versions_is_in_another_order(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        document = torch.load(ckpt, weights_only=True)
        torch.save(document | {"optimizer": old_order(document)}, tmp_path / "ckpt.pt")
        assert_same_bits(NanoGPTCheckpoint(tmp_path / "ckpt.pt").moments(), NanoGPTCheckpoint(ckpt).moments())

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    def test_prefixes_of_pytorchs_wrappers(self, ckpt: Path, prefix: str, tmp_path: Path) -> None:
        document = torch.load(ckpt, weights_only=True)
        document["model"] = {prefix + name: value for name, value in document["model"].items()}
        torch.save(document, tmp_path / "ckpt.pt")
        assert_same_bits(NanoGPTCheckpoint(tmp_path / "ckpt.pt").params(), NanoGPTCheckpoint(ckpt).params())

    def test_one_tensor_under_two_names_is_refused(self) -> None:
        state_dict = state_dict_of(random_params(NANOGPT), NANOGPT, "nanogpt")
        both = {**state_dict, **{f"module.{name}": -value for name, value in state_dict.items()}}
        assert "one tensor under two names" in refusal(params_of, both, NANOGPT, "nanogpt")


def folder_of(state_dict: dict[str, Any], folder: Path, **config: Any) -> Path:
    """A Hugging Face folder of the tensors, whose `config.json` has more than ours does."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_format.hf_config_of(GPT2) | config))
    torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, folder / "pytorch_model.bin")
    return folder


class TestHuggingFace:
    def test_heads_for_other_uses_and_masks_are_left_out_and_said_to_be(self, tmp_path: Path, capsys: Any) -> None:
        params = random_params(GPT2)
        state_dict = state_dict_of(params, GPT2, "hf")
        mask = np.tril(np.ones((1, 1, 8, 8), bool))
        more = {"score.weight": np.ones((2, 16), np.float32), "v_head.summary.weight": np.ones((1, 16), np.float32)}
        masks = {"transformer.h.0.attn.bias": mask, "transformer.h.1.attn.masked_bias": np.float32(-1e4)}
        folder = folder_of(state_dict | more | masks, tmp_path / "hf")
        assert_same_bits(hf_format.read_hf_params(folder, GPT2), params)
        said = capsys.readouterr().err
        assert "leaving out what is of a head for another use (score.weight and 1 more)" in said
        assert "leaving out causal masks, which the model makes itself (transformer.h.0.attn.bias and 1 more)" in said
        assert not any(left_out(state_dict).values())

    def test_a_classifier_of_transformers_gives_its_gpt2(self, tmp_path: Path, capsys: Any) -> None:
        config = transformers.GPT2Config(**hf_format.hf_config_of(GPT2), pad_token_id=0)
        model = transformers.GPT2ForSequenceClassification(config)
        model.save_pretrained(tmp_path / "hf")
        table = hf_format.read_hf_params(tmp_path / "hf", GPT2)["wte"]["embedding"]
        np.testing.assert_array_equal(table, model.transformer.wte.weight.detach().numpy())
        assert "score.weight" in capsys.readouterr().err

    def test_float64_is_rounded(self, tmp_path: Path) -> None:
        params = random_params(GPT2)
        wide = {name: value.astype(np.float64) + 1e-12 for name, value in state_dict_of(params, GPT2, "hf").items()}
        expected = params_of({name: value.astype(np.float32) for name, value in wide.items()}, GPT2, "hf")
        assert_same_bits(hf_format.read_hf_params(folder_of(wide, tmp_path / "hf"), GPT2), expected)

    def test_n_ctx_says_nothing(self) -> None:
        assert hf_format.gpt_config_of_hf(hf_format.hf_config_of(GPT2) | {"n_ctx": 4096}) == GPT2

    @pytest.mark.parametrize(
        "name", ["gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_python"]
    )
    def test_one_function_has_many_names(self, name: str) -> None:
        document = hf_format.hf_config_of(GPT2) | {"activation_function": name}
        ours = hf_format.gpt_config_of_hf(document).activation
        x = torch.linspace(-5, 5, 1001)
        theirs = transformers.activations.ACT2FN[name](x)
        mine = torch.nn.functional.gelu(x, approximate="tanh" if ours == "gelu_new" else "none")
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("flax_model.msgpack", "holds Flax weights (flax_model.msgpack) alone"),
            ("tf_model.h5", "holds TensorFlow weights (tf_model.h5) alone"),
            ("model.ckpt.index", "holds a TensorFlow 1 checkpoint (model.ckpt.index) alone"),
            ("adapter_config.json", "adapter_config.json: target_modules=None is no list of names; give the modules'"),
            ("adapter_model.safetensors", "holds the matrices of a LoRA adapter (adapter_model.safetensors) without"),
            ("gpt2.Q4_K_M.gguf", "holds GGUF weights (gpt2.Q4_K_M.gguf) alone"),
            ("README.md", "holds the config.json of a model and no weights (model.safetensors or"),
        ],
    )  # fmt: skip
    def test_weights_in_other_forms_are_named(self, file: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "config.json").write_text(json.dumps(hf_format.hf_config_of(GPT2)))
        (tmp_path / "hf" / file).write_bytes(b"{}")
        assert message in refusal(loading.open_weights, str(tmp_path / "hf"))
        assert message in refusal(convert.main, [str(tmp_path / "hf"), str(tmp_path / "run")])
        assert not (tmp_path / "run").exists()

    def test_a_file_of_a_folder_is_not_the_folder(self, tmp_path: Path) -> None:
        folder = folder_of(state_dict_of(random_params(GPT2), GPT2, "hf"), tmp_path / "hf")
        for name in ("pytorch_model.bin", "model.safetensors"):
            (folder / "model.safetensors").touch()
            assert f"name the folder: {folder}" in refusal(loading.open_weights, str(folder / name))


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """The hub's folder with three models: distilgpt2, one with tokens of its own, and a Llama in shards."""
    torch.manual_seed(0)
    for name, rows in (("distilbert/distilgpt2", 50_257), ("dbmdz/german-gpt2", 300)):
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=rows)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hub" / name)
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["Der Garten war groß. "] * 4, vocab_size=300, show_progress=False)
    made.save(str(tmp_path / "hub" / "dbmdz" / "german-gpt2" / "tokenizer.json"))
    shape = dict(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=12, vocab_size=300)
    llama = tmp_path / "hub" / "HuggingFaceTB" / "SmolLM2-135M"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).save_pretrained(llama, max_shard_size="8KB")
    assert not (llama / "model.safetensors").exists()
    made.save(str(llama / "tokenizer.json"))
    return tmp_path / "hub"


class TestNames:
    def test_any_model_of_the_hub_goes_by_its_name(self, hub_folder: Path, tmp_path: Path, capsys: Any) -> None:
        names = ("distilgpt2", "distilbert/distilgpt2", "dbmdz/german-gpt2", "HuggingFaceTB/SmolLM2-135M")
        with hub(hub_folder, tmp_path / "cache"):
            first = [loading.open_weights(name) for name in names]
            assert "not a" not in capsys.readouterr().err
            unknown = refusal(loading.open_weights, "nobody/gpt2-nothing")
            assert "no model nobody/gpt2-nothing on Hugging Face's hub" in unknown and "check the name" in unknown
        with at("http://127.0.0.1:9", tmp_path / "cache"):  # where nothing listens: from the cache
            again = [loading.open_weights(name) for name in names]
            offline = refusal(loading.open_weights, "nobody/gpt2-nothing")
            assert "there is no folder nobody/gpt2-nothing here" in offline and "go online" in offline
        for weights in (first, again):
            assert [w.tokenizer["type"] for w in weights] == ["gpt2", "gpt2", "hf", "hf"]
            assert [w.vocab_size for w in weights] == [50_257, 50_257, 300, 300]
            llama = weights[-1]
            ours = build_model(Settings(**llama.settings), llama.vocab_size, "cpu")
            assert llama.settings["norm"] == "rms" and "c_gate" in llama.load(ours)["h_0"]["mlp"]

    def test_what_stands_in_the_way_of_a_model_is_named(self, hub_folder: Path, tmp_path: Path) -> None:
        german = hub_folder / "dbmdz" / "german-gpt2"
        for name, lacks in (("gated", ""), ("bare", "config.json"), ("light", "model.safetensors"), ("torn", "")):
            shutil.copytree(german, hub_folder / "some" / name, ignore=shutil.ignore_patterns(lacks))
        (hub_folder / "some" / "gated" / ".gated").touch()
        torn = hub_folder / "some" / "torn"
        shards = {TABLE: "model-00001-of-00002.safetensors", HEAD: "model-00002-of-00002.safetensors"}
        (torn / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        (torn / "model.safetensors").rename(torn / shards[TABLE])
        with hub(hub_folder, tmp_path / "cache"):
            for name, said in (
                (
                    "some/gated",
                    "some/gated is behind a gate on Hugging Face's hub; accept its terms at http://127.0.0.1",
                ),
                ("some/bare", "some/bare on Hugging Face's hub has no config.json; name another"),
                ("some/light", "has no weights that are read here (model.safetensors, pytorch_model.bin); name"),
                ("some/torn", "some/torn on Hugging Face's hub has no model-00002-of-00002.safetensors; name another"),
            ):
                assert said in refusal(loading.open_weights, name)

    def test_a_cache_with_the_weights_alone_gets_the_tokenizer_too(self, hub_folder: Path, tmp_path: Path) -> None:
        name, nowhere = "dbmdz/german-gpt2", at("http://127.0.0.1:9", tmp_path / "cache")
        with hub(hub_folder, tmp_path / "cache"):
            for file in ("config.json", "model.safetensors"):  # as AutoModelForCausalLM does
                huggingface_hub.hf_hub_download(name, file, cache_dir=tmp_path / "cache")
        with nowhere:
            assert loading.open_weights(name).tokenizer is None
        with hub(hub_folder, tmp_path / "cache") as asked:
            assert loading.open_weights(name).tokenizer["type"] == "hf"
            assert not any(line.startswith("GET") and "safetensors" in line for line in asked)

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("gpt2_xl", "gpt2-xl"), ("GPT2", "gpt2"), ("gpt-2", "gpt2"), ("gpt2medium", "gpt2-medium"),
            ("distil-gpt2", "distilgpt2"),
        ],
    )  # fmt: skip
    def test_a_name_that_is_nearly_right(self, name: str, meant: str, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        assert f"{name} is no folder here and no model's name; did you mean {meant}?" in refusal(
            loading.open_weights, name
        )
        assert f"did you mean {meant}?" in refusal(convert.main, [name, "out"])

    def test_paths_are_not_taken_for_names(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        for path in ("runs/mine", "out-gpt2", "a/ckpt.pt", "./a/b", "/a/b", "a/b/c", "../a", "out", "a b/c"):
            assert hub_name(path) is None
        (tmp_path / "gpt2_xl").mkdir()
        assert hub_name("gpt2_xl") is None and hub_name("gpt2-xl") == "gpt2-xl" and hub_name("a/b") == "a/b"
        assert "out-gpt2 holds no run" in refusal(loading.open_weights, "out-gpt2")
