"""Hugging Face's folders: written and read, exact to the bit, or refused for what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanogpt_jax import convert
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights import hf_format, loading
from nanogpt_jax.weights.state_dicts import TABLE, params_of
from tests.helpers.foreign import (
    GPT2,
    NANOGPT,
    TOKENS,
    VOCABULARY,
    apply,
    logits_of,
    nothing_written,
    random_params,
    state_dict_in,
)
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


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
        ours = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
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


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
