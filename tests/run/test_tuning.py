"""A run that tunes weights by LoRA: what it saves, how it goes on, what takes it, and the base that it belongs to."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from nanogpt_jax import sweep
from nanogpt_jax.cli import sample, train
from nanogpt_jax.compare import command as compare
from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.prepared import load_tokenizer
from nanogpt_jax.data.tasks import prepare_examples
from nanogpt_jax.lens import command as lens
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights.checkpoint import newest
from nanogpt_jax.weights.loading import open_weights
from tests.helpers.commands import metrics_of
from tests.helpers.refusals import refusal
from tests.helpers.tiny import TINY, prepare_tiny

LORA = (
    "--lora_rank=2",
    "--lora_targets=attn.c_attn,mlp",
    "--learning_rate=1e-2",
    "--warmup_iters=0",
    "--decay_lr=False",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder with a base, and pairs in its tokens."""
    lab = tmp_path_factory.mktemp("lab")
    prepare_tiny(lab, "to be or not to be\n")
    assert train.main([*TINY, f"--data_dir={lab / 'data'}", f"--out_dir={lab / 'base'}", "--max_iters=30"]) == 0
    pairs = [{"prompt": "to be"[: 1 + i % 4], "completion": "or n"[: 1 + i % 4]} for i in range(60)]
    (lab / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    weights = open_weights(str(lab / "base"))
    prepare_examples([lab / "pairs.jsonl"], lab / "data" / "pairs", "pairs", load_tokenizer(weights.tokenizer))
    return lab


def flags(lab, out_dir, *more, lora=LORA):
    own = [flag for flag in TINY if not flag.startswith(("--dataset", "--n_", "--block_size", "--dropout"))]
    where = (f"--data_dir={lab / 'data'}", f"--out_dir={out_dir}", f"--init_from={lab / 'base'}")
    return [*own, "--dataset=pairs", "--block_size=8", *where, "--eval_interval=5", *lora, "--max_iters=10", *more]


def saved(run):
    return {name: load_file(newest(run).folder / "files" / f"{name}.safetensors") for name in ("params", "rest")}


@pytest.fixture(scope="module")
def tuned(lab):
    assert train.main(flags(lab, lab / "tuned")) == 0
    return lab / "tuned"


def test_a_checkpoint_holds_the_delta_alone_and_names_its_base(lab, tuned):
    arrays = saved(tuned)["params"]
    assert set(arrays) == {f"h_0/{layer}/lora_{x}" for layer in ("attn/c_attn", "mlp/c_fc", "mlp/c_proj") for x in "AB"}
    assert sum(x.size for x in arrays.values()) == 2 * (16 + 48 + 16 + 64 + 64 + 16)
    assert all(np.abs(x).max() > 0 for x in arrays.values())
    base = newest(tuned).run.base
    assert base["source"] == str(lab / "base") and re.fullmatch("[0-9a-f]{32}", base["digest"])
    losses = [line["loss"] for line in metrics_of(tuned) if line["split"] == "train_eval"]
    assert losses[-1] < losses[0]


def test_a_stopped_run_goes_on_to_the_same_bits(lab, tuned, tmp_path):
    run = tmp_path / "run"
    assert train.main(flags(lab, run, "--max_iters=5")) == 0
    assert train.main(["--init_from=resume", f"--out_dir={run}", "--max_iters=10"]) == 0
    for name, arrays in saved(tuned).items():
        assert saved(run)[name].keys() == arrays.keys()
        for key, x in arrays.items():
            np.testing.assert_array_equal(saved(run)[name][key], x, err_msg=key)


def test_the_base_stays_where_and_as_it_was(lab, tuned):
    before = open_weights(str(lab / "base"))
    model = build_model(Settings(**before.settings), before.vocab_size, "cpu")
    one, merged = before.load(model, None), open_weights(str(tuned)).load(model, None)
    changed = {
        "/".join(str(key.key) for key in path)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(merged), strict=True)
        if not np.array_equal(x, y)
    }
    assert changed == {f"h_0/{layer}/kernel" for layer in ("attn/c_attn", "mlp/c_fc", "mlp/c_proj")}


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
def test_the_loss_it_ends_with_is_that_of_the_merged_weights(lab, tmp_path, capsys, base):
    run = tmp_path / "run"
    assert train.main(flags(lab, run, f"--lora_base={base}", "--max_iters=4")) == 0
    ended = float(re.search(r"final val loss ([\d.]+)", capsys.readouterr().out)[1])
    where = [f"--data_dir={lab / 'data'}", "--dataset=pairs", "--accelerator=cpu", "--which=last"]
    assert train.main([f"--init_from={run}", "--eval_only", *where]) == 0
    merged = float(re.search(r"final val loss ([\d.]+)", capsys.readouterr().out)[1])
    assert merged == pytest.approx(ended, abs=1e-4 if base == "float32" else 2e-2)
    assert train.main(["--init_from=resume", f"--out_dir={run}", "--eval_only", "--which=last"]) == 0
    assert float(re.search(r"final val loss ([\d.]+)", capsys.readouterr().out)[1]) == pytest.approx(ended, abs=1e-4)


def test_text_is_drawn_from_base_and_delta(tuned, capsys):
    assert sample.main([f"--out_dir={tuned}", "--start=to", "--num_samples=1", "--max_new_tokens=8"]) == 0
    assert capsys.readouterr().out.startswith("to")


def test_it_is_compared_and_looked_into_merged(lab, tmp_path, capsys):
    base, run = tmp_path / "base", tmp_path / "run"
    where = f"--data_dir={lab / 'data'}"
    assert train.main([*TINY, "--bias=True", where, f"--out_dir={base}", "--max_iters=2"]) == 0
    assert train.main([*flags(lab, run, "--max_iters=2"), f"--init_from={base}"]) == 0
    capsys.readouterr()
    to_compare = ["--dataset=tiny", where, "--batch_size=2", "--steps=2", "--accelerator=cpu"]
    assert compare.main([f"--init_from={run}", *to_compare]) == 0
    assert "all tolerances hold" in capsys.readouterr().out
    said = refusal(lambda: compare.main([f"--init_from={run}", "--n_layer=3", *to_compare]))
    assert f"n_layer=3 does not fit the weights in {run}, which have n_layer=1" in said
    assert lens.main([f"--out_dir={run}", "--start=to", "--max_new_tokens=4", f"--html={tmp_path / 'lens.html'}"]) == 0
    assert (tmp_path / "lens.html").stat().st_size > 1000


def test_a_tuned_run_is_a_base_for_another(lab, tuned, tmp_path):
    run = tmp_path / "again"
    assert train.main([*flags(lab, run, "--max_iters=1"), f"--init_from={tuned}"]) == 0
    assert newest(run).run.base["source"] == str(tuned)
    weights = open_weights(str(run))
    assert weights.load(build_model(Settings(**weights.settings), weights.vocab_size, "cpu"), None)


def test_a_delta_on_another_base_is_refused(lab, tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    to_train_it = [*TINY, f"--data_dir={lab / 'data'}", f"--out_dir={base}"]
    assert train.main([*to_train_it, "--max_iters=1"]) == 0
    assert train.main([*flags(lab, run, "--max_iters=1"), f"--init_from={base}"]) == 0
    weights = open_weights(str(run))
    model = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
    assert weights.load(model, None)
    assert train.main([*to_train_it, "--max_iters=2"]) == 0
    for use in (
        lambda: weights.load(model, None),
        lambda: train.main(["--init_from=resume", f"--out_dir={run}", "--max_iters=2"]),
    ):
        said = refusal(use)
        assert "was tuned on weights with the digest" in said and said.endswith("put the ones back that it belongs to")
    shutil.rmtree(base)
    assert f"delta to the weights in {base}, which are not there; put" in refusal(lambda: weights.load(model, None))


def test_a_base_that_is_itself_tuned_on_what_it_is_the_base_of_is_refused(lab, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert train.main([*TINY, f"--data_dir={lab / 'data'}", f"--out_dir={one}", "--max_iters=1"]) == 0
    assert train.main([*flags(lab, other, "--max_iters=1"), f"--init_from={one}"]) == 0
    assert train.main([*flags(lab, one, "--max_iters=1"), f"--init_from={other}"]) == 0  # and the first is gone
    weights = open_weights(str(other))
    model = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
    said = refusal(lambda: weights.load(model, None))
    assert "which is itself a delta to that; put the weights back" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--lora_targets=head"], "lora_targets='head' names 'head'; choose some of attn"),
        (["--lora_rank=0"], "lora_rank=0"),
        (["--lora_alpha=0"], "lora_alpha=0.0 is not a finite number above 0"),
        (["--optimizer=muon"], "optimizer=muon has no LoRA; choose adamw"),
        (["--init_from=scratch"], "lora_rank=2 tunes weights that are there; name them with init_from"),
        (["--lora_base=int4"], "lora_base='int4'"),
        (["--block_size=4"], "block_size=4 has room for examples of 5 tokens, and the longest"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(lab, tmp_path, more, says):
    said = refusal(lambda: train.main([*flags(lab, tmp_path / "run"), *more]))
    assert says in said and not (tmp_path / "run").exists()


def test_a_sweep_tunes_all_weights(lab, tmp_path):
    said = refusal(lambda: sweep.main([*flags(lab, tmp_path / "run"), "--seed=1,2"]))
    assert "lora_rank is for a single run" in said


def test_a_run_goes_on_with_the_delta_it_has(tuned):
    said = refusal(lambda: train.main(["--init_from=resume", f"--out_dir={tuned}", "--lora_rank=4", "--max_iters=20"]))
    assert "lora_rank=4 does not fit the run" in said
