"""Adapters as whole programs take them: read as weights, made of runs that LoRA trained, and trained on."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import transformers

from nanogpt_jax import convert
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.cli.texts import sample_text
from nanogpt_jax.core.config import Settings
from nanogpt_jax.run import loop
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights import bases, hf_format
from nanogpt_jax.weights.checkpoint import newest
from nanogpt_jax.weights.loading import open_weights
from nanogpt_jax.weights.nanogpt_format import NanoGPTCheckpoint
from nanogpt_jax.weights.peft_format import read_peft, write_peft
from tests.helpers.adapters import LLAMA, MODELS, random_adapter
from tests.helpers.foreign import GPT2, TOKENS, Lab, apply, logits_of, nothing_written, random_params
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits, tree_of


def opened(source: Path, which: str = "best") -> tuple[Any, Any]:
    """A model and its parameters, as every command opens them."""
    weights = open_weights(str(source), which=which)
    model = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
    return model, weights.load(model, None)


def hf_folder(config: Any, folder: Path) -> Path:
    folder.mkdir()
    hf_format.write_hf(folder, config, random_params(config))
    return folder


def adapter_on(config: Any, base: Path, folder: Path) -> Path:
    folder.mkdir()
    write_peft(folder, config, random_adapter(config, base=str(base)))
    return folder


def their_logits(base: Path, adapter: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return logits_of(peft.PeftModel.from_pretrained(model, adapter).eval(), TOKENS)


def tune(lab: Lab, base: Path, run: Path, **changes: Any) -> Settings:
    settings = dataclasses.replace(
        lab.settings, init_from=str(base), out_dir=str(run), lora_rank=2, lora_alpha=6.0, warmup_iters=0, **changes
    )
    loop.train(settings)
    return settings


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_is_opened_merged_into_the_base_that_it_names(name: str, tmp_path: Path) -> None:
    base = hf_folder(MODELS[name], tmp_path / "base")
    adapter = adapter_on(MODELS[name], base, tmp_path / "adapter")
    model, params = opened(adapter)
    np.testing.assert_allclose(apply(model, params), their_logits(base, adapter), atol=1e-5)
    assert np.abs(apply(*opened(base)) - apply(model, params)).max() > 0.02


def test_a_base_s_path_is_one_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_folder(GPT2, tmp_path / "base")
    adapter = adapter_on(GPT2, Path("base"), tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert opened(adapter)
    monkeypatch.chdir(adapter)
    said = refusal(open_weights, str(adapter))
    assert said == f"{adapter} holds a delta to the weights in base, which are not there; put them back"


def test_text_is_drawn_from_an_adapter_on_a_run(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    weights = open_weights(str(lab.run))
    config = build_model(Settings(**weights.settings), weights.vocab_size, "cpu").config
    (tmp_path / "adapter").mkdir()
    adapter = random_adapter(config, base=str(lab.run))
    hf = dataclasses.replace(config, activation="gelu_new", bias=True)  # of whose names the run's are some
    write_peft(tmp_path / "adapter", hf, adapter)
    sample_text(SampleSettings(init_from=str(tmp_path / "adapter"), num_samples=1, start="To", max_new_tokens=5))
    assert capsys.readouterr().out.startswith("To")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_lora_trained_is_an_adapter_of_the_same_logits(name: str, lab: Lab, tmp_path: Path, capsys: Any) -> None:
    base = hf_folder(MODELS[name], tmp_path / "base")
    tune(lab, base, tmp_path / "run")
    assert convert.main([str(tmp_path / "run"), str(tmp_path / "adapter"), "--to=peft"]) == 0
    assert "which transformers does not read" not in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    ours = apply(*opened(tmp_path / "run"))
    np.testing.assert_allclose(ours, their_logits(base, tmp_path / "adapter"), atol=1e-5)
    assert np.abs(ours - apply(*opened(base))).max() > 1e-3
    document = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (document["r"], document["lora_alpha"]) == (2, 6)
    assert document["base_model_name_or_path"] == str(base)
    assert convert.main([str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    np.testing.assert_allclose(logits_of(merged, TOKENS), ours, atol=1e-5)


def test_which_checkpoint_becomes_an_adapter_is_said(lab: Lab, tmp_path: Path) -> None:
    base = hf_folder(GPT2, tmp_path / "base")
    tune(
        lab, base, tmp_path / "run", learning_rate=30.0, decay_lr=False, max_iters=8, eval_interval=4
    )  # whose best is not its last
    for which in ("best", "last"):
        out = tmp_path / which
        assert convert.main([str(tmp_path / "run"), str(out), "--to=peft", f"--which={which}"]) == 0
        np.testing.assert_allclose(apply(*opened(out)), apply(*opened(tmp_path / "run", which)), atol=1e-5)
    assert not np.array_equal(apply(*opened(tmp_path / "best")), apply(*opened(tmp_path / "last")))


def test_a_run_s_delta_and_its_base_are_one_model_to_nanogpt_and_in_a_run(
    lab: Lab, tmp_path: Path, capsys: Any
) -> None:
    tune(lab, lab.run, tmp_path / "run")
    ours = apply(*opened(tmp_path / "run", "last"))
    for out, to in (("ckpt.pt", []), ("whole", ["--to=run"])):
        assert convert.main([str(tmp_path / "run"), str(tmp_path / out), *to]) == 0
        np.testing.assert_array_equal(apply(*opened(tmp_path / out)), ours)
    assert NanoGPTCheckpoint(tmp_path / "ckpt.pt").moments() is None
    assert newest(tmp_path / "whole").run.base is None
    with nothing_written(tmp_path):
        said = refusal(convert.main, [str(lab.run), str(tmp_path / "x"), "--to=peft"])
    assert f"{lab.run} trained whole weights, which are no adapter; convert it with --to=hf" in said


def test_an_adapter_becomes_a_run_that_goes_on(lab: Lab, tmp_path: Path) -> None:
    base = hf_folder(GPT2, tmp_path / "base")
    adapter = adapter_on(GPT2, base, tmp_path / "adapter")
    run = tmp_path / "run"
    assert convert.main([str(adapter), str(run), f"--tokenizer={lab.data_dir / 'words'}"]) == 0
    document = newest(run).run
    assert document.base == {"source": str(base), "which": "best", "digest": bases.digest_of(opened(base)[1])}
    assert re.fullmatch("[0-9a-f]{32}", document.base["digest"])
    np.testing.assert_array_equal(apply(*opened(run)), apply(*opened(adapter)))
    back = tmp_path / "back"
    assert convert.main([str(run), str(back), "--to=peft"]) == 0
    assert_same_bits(read_peft(back, GPT2).delta, read_peft(adapter, GPT2).delta)
    before, delta = tree_of(base), read_peft(adapter, GPT2).delta
    changes = {"max_iters": 2, "batch_size": 2, "gradient_accumulation_steps": 1, "eval_iters": 1, "warmup_iters": 0}
    changes |= {"dataset": "words", "data_dir": str(lab.data_dir), "out_dir": str(run), "init_from": "resume"}
    changes |= {"allow_changes": True}  # as for any run out of files that know of no data set
    loop.train(dataclasses.replace(lab.settings, **changes), changes)
    assert newest(run).run.step == 2 and tree_of(base) == before
    assert convert.main([str(run), str(back), "--to=peft", "--which=last", "--overwrite"]) == 0
    trained = read_peft(back, GPT2).delta
    assert not np.array_equal(trained["h_0"]["mlp"]["c_fc"]["lora_B"], delta["h_0"]["mlp"]["c_fc"]["lora_B"])


def test_an_adapter_and_its_base_become_one_folder_of_transformers(tmp_path: Path) -> None:
    base = hf_folder(LLAMA, tmp_path / "base")
    adapter = adapter_on(LLAMA, base, tmp_path / "adapter")
    assert convert.main([str(adapter), str(tmp_path / "hf"), "--to=hf"]) == 0
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    np.testing.assert_allclose(logits_of(merged, TOKENS), their_logits(base, adapter), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": None}, "adapter_config.json does not name the weights it belongs to; put"),
        ({"base_model_name_or_path": "ADAPTER"}, "names another adapter as its base"),
        ({"base_model_name_or_path": "./nowhere"}, "holds a delta to the weights in ./nowhere, which are not there"),
        ({"target_modules": ["q_proj"]}, "target_modules names 'q_proj', and what may be trained here is c_attn"),
        ({"use_dora": True}, "use_dora=True is not offered"),
        ({"r": 4}, "tensor base_model.model.transformer.h.0.attn.c_attn.lora_A.weight has shape (3, 16)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("out", ["run", "hf"])
def test_what_cannot_be_converted_is_named_before_anything_is_written(
    changes: Any, message: str, out: str, lab: Lab, tmp_path: Path
) -> None:
    adapter = adapter_on(GPT2, hf_folder(GPT2, tmp_path / "base"), tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    changes = {name: str(adapter) if value == "ADAPTER" else value for name, value in changes.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    argv = [str(adapter), str(tmp_path / "out"), f"--to={out}", f"--tokenizer={lab.data_dir / 'words'}"]
    with nothing_written(tmp_path):
        assert message in refusal(convert.main, argv)


def test_a_run_s_base_that_transformers_does_not_read_is_pointed_at(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    base = tmp_path / "base"
    shutil.copytree(hf_folder(GPT2, tmp_path / "hf"), base)
    assert convert.main([str(base), str(tmp_path / "whole"), "--to=run", f"--tokenizer={lab.data_dir / 'words'}"]) == 0
    tune(lab, tmp_path / "whole", tmp_path / "run")
    capsys.readouterr()
    assert convert.main([str(tmp_path / "run"), str(tmp_path / "adapter"), "--to=peft"]) == 0
    said = capsys.readouterr().err
    assert f"belongs to {tmp_path / 'whole'}, which transformers does not read: convert that too" in said
