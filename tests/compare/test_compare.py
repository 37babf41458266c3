"""The comparison with PyTorch: it passes where the two agree, and it can fail."""

import json
import sys

import numpy as np
import pytest
import torch

from nanogpt_jax.compare import command as compare
from nanogpt_jax.compare import inputs, torch_side
from nanogpt_jax.compare.parity import Ours, Row
from nanogpt_jax.compare.parity import compare as compared
from nanogpt_jax.compare.report import table
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.dataset import random_batch
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.presets import preset
from tests.helpers.torch_twin import twin

SMALL = ("--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--vocab_size=65")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """PyTorch's threads wait for each other, which on a busy machine takes longer than these small products do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(tmp_path, capsys):
    """Run the command on the small shape, without prepared data; its exit status and what it printed."""

    def run(*argv):
        status = compare.main([*SMALL, f"--data_dir={tmp_path / 'none'}", *map(str, argv)])
        return status, capsys.readouterr().out

    return run


def test_it_holds_against_hugging_face_over_200_updates(command, tmp_path):
    numbers, plot = tmp_path / "new" / "numbers.json", tmp_path / "plot.png"
    status, out = command(f"--json={numbers}", f"--plot={plot}")
    assert status == 0, out
    assert "bias=True, activation=gelu_new to agree with Hugging Face's GPT-2" in out
    assert "random tokens" in out and "all tolerances hold" in out and "MISSED" not in out
    document = json.loads(numbers.read_text())
    gradients = {row["at"] for row in document["rows"] if row["quantity"] == "gradient"}
    assert len(gradients) == 12 * 2 + 4 and "h_1/attn/c_attn/kernel" in gradients
    quantities = [row["quantity"] for row in document["rows"] if row["quantity"] != "gradient"]
    assert quantities == [
        "logits", "loss", "parameters after 1 update", "parameters after 200 updates",
        "biases of keys after 200 updates", "loss after 200 updates", "loss of every batch",
        "learning rate of every update", "logits, trained weights", "greedy text, 200 tokens",
    ]  # fmt: skip
    losses = document["losses"]
    assert len(losses["here"]) == len(losses["reference"]) == 201
    assert losses["here"][-1] < losses["here"][0] - 0.1, "nothing was learnt, so little was compared"
    assert {"torch", "transformers", "jax"} <= set(document["versions"])
    assert plot.read_bytes().startswith(b"\x89PNG")


LLAMA = ("--position=rope", "--n_kv_head=1", "--mlp_size=24", "--tie_word_embeddings=False")
TIED = ("--position=rope", "--n_kv_head=1", "--rope_scaling=llama3:8,1,4,8", "--norm_epsilon=1e-6")
QWEN = (
    "--position=rope",
    "--qk_norm=True",
    "--n_head=4",
    "--n_kv_head=2",
    "--head_size=6",
    "--mlp_size=20",
    "--rope_theta=1e6",
)


@pytest.mark.parametrize(
    ("argv", "kind", "tensors"),
    [(LLAMA, "Llama", 2 * 7 + 3), (TIED, "Llama", 2 * 7 + 2), (QWEN, "Qwen3", 2 * 9 + 2)],
)
def test_it_holds_against_the_model_that_the_settings_are_of(argv, kind, tensors, command, tmp_path):
    status, out = command(*argv, "--steps=20", "--learning_rate=4e-3", "--warmup_iters=5", f"--json={tmp_path / 'x'}")
    assert status == 0, out
    assert f"Hugging Face {kind}ForCausalLM" in out
    assert f"norm=rms, activation=swiglu to agree with Hugging Face's {kind}" in out
    document = json.loads((tmp_path / "x").read_text())
    assert len([row for row in document["rows"] if row["quantity"] == "gradient"]) == tensors
    assert document["losses"]["here"][-1] < document["losses"]["here"][0] - 0.05, "little was learnt"


def test_it_holds_against_a_nanogpt_checkout_with_accumulated_gradients(command, tmp_path):
    (tmp_path / "model.py").write_text("from tests.helpers.torch_twin import NanoConfig as GPTConfig, NanoGPT as GPT\n")
    status, out = command(f"--reference={tmp_path}", "--steps=3", "--gradient_accumulation_steps=2", "--all")
    assert status == 0, out
    assert f"nanoGPT in {tmp_path}" in out and "to agree with" not in out
    assert "h_0/mlp/c_fc/kernel" in out and "h_1/mlp/c_fc/kernel" in out


def test_bfloat16_has_tolerances_of_its_own(command):
    status, out = command("--dtype=bfloat16", "--steps=20")
    assert status == 0, out
    assert "1e-01 absolute" in out


def sides(name, **changes):
    """Our side of a preset, a maker of its twin, its batches, and its settings."""
    settings = preset(name, dtype="float32", **changes)
    model = build_model(settings, 65, "cpu")
    tokens = inputs.open_data(preset(name, data_dir="nowhere", **changes)).tokens

    def batch_of(step):
        return random_batch(tokens, "train", settings.seed, step, (settings.batch_size,), settings.block_size)

    return Ours(model, settings), lambda **options: twin(model.config, settings, **options), batch_of, settings


# The derivative of ReLU jumps at zero, so that rounding alone parts two runs of the notebook's model within 50 updates
# at its constant rate (PyTorch parts from PyTorch as far, with weights 1e-7 away): few updates, and small ones, here.
NARROW = dict(n_layer=1, n_head=2, n_embd=16, block_size=8)
WARM = dict(decay_lr=True, warmup_iters=100, lr_decay_iters=5000, min_lr=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "steps"), [("bigram", {}, 200), ("gpt_dev", {}, 1), ("gpt_dev", {**NARROW, **WARM}, 20)]
)
def test_the_notebooks_models_hold_against_their_twins(name, changes, steps):
    ours, make_twin, batch_of, settings = sides(name, **changes)
    comparison = compared(ours, make_twin(), batch_of, steps, settings)
    assert not comparison.missed, table(comparison.rows)


def perturbed(side):
    """A side that loads one weight a little off."""
    load = side.load

    def load_perturbed(params):
        params["h_0"]["mlp"]["c_fc"]["kernel"][3, 5] += 0.01
        load(params)

    side.load = load_perturbed
    return side


def with_decay_on_vectors(side):
    for group in side.optimizer.param_groups:
        group["weight_decay"] = 0.01
    return side


def late_by_one(side):
    rates = side.learning_rates
    side.learning_rates = lambda n: np.r_[0, rates(n - 1)]
    return side


@pytest.mark.parametrize(
    ("spoil", "options", "quantity"),
    [
        (perturbed, {}, "logits"),
        (lambda side: side, {"epsilon": 1e-3}, "gradient"),
        (with_decay_on_vectors, {}, "parameters after 1 update"),
        (late_by_one, {}, "learning rate of every update"),
    ],
)
def test_what_is_wrong_is_found(spoil, options, quantity):
    ours, make_twin, batch_of, settings = sides("gpt_dev", **NARROW)
    comparison = compared(ours, spoil(make_twin(**options)), batch_of, 1, settings)
    assert comparison.missed
    assert quantity in {row.quantity for row in comparison.rows if row.verdict == "MISSED"}


def test_a_missed_tolerance_is_exit_status_1(command, monkeypatch):
    right = torch_side.hf_config_of
    monkeypatch.setattr(torch_side, "hf_config_of", lambda *of: right(*of) | {"layer_norm_epsilon": 1e-3})
    status, out = command("--steps=1")
    assert status == 1
    assert "tolerances MISSED" in out and "| MISSED" in out


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        (LLAMA, {"rope_theta": 100.0}),
        (TIED, {"rope_scaling": None}),
        (QWEN, {"rms_norm_eps": 1e-3}),
    ],
)
def test_a_model_of_today_with_another_setting_is_found(argv, wrong, command, monkeypatch):
    right = torch_side.hf_config_of
    monkeypatch.setattr(torch_side, "hf_config_of", lambda *of: right(*of) | wrong)
    status, out = command(*argv, "--steps=1")
    assert status == 1, out
    assert "| MISSED" in out


@pytest.mark.parametrize(("value", "verdict"), [(0.5, "ok"), (1.5, "MISSED"), (float("nan"), "MISSED")])
def test_a_verdict_is_of_a_number(value, verdict):
    assert Row("q", "", value, 9.0, 1.0).verdict == verdict
    assert Row("q", "", 9.0, value, 1.0, "relative").verdict == verdict
    assert Row("q", "", value, value, None).verdict == "-"


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_the_extra_one_line_says_what_to_install(package, command, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "nanogpt_jax.compare.torch_side", raising=False)
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed; pip install -e '\.\[torch\]'$"):
        command("--plot=plot.png")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bias=False"], "bias=False cannot be compared with Hugging Face's GPT-2; add --bias=True"),
        (["--dropout=0.1"], "dropout=0.1 cannot be compared with Hugging Face's GPT-2; add --dropout=0.0"),
        (["--optimizer=muon"], "optimizer=muon cannot be compared with Hugging Face's GPT-2; add --optimizer=adamw"),
        (["--schedule=wsd"], "schedule=wsd cannot be compared with Hugging Face's GPT-2; add --schedule=cosine"),
        (["bigram"], "model=bigram cannot be compared with Hugging Face's GPT-2; add --model=gpt"),
        (["gpt_dev"], "qkv_bias=False cannot be compared with Hugging Face's GPT-2; add --qkv_bias=None"),
        (["--norm=rms"], "norm=rms has no equal in Hugging Face's GPT-2"),
        (["--position=rope", "--activation=relu2"], "activation=relu2 has no equal in Hugging Face's Llama"),
        (["--position=rope", "--logit_softcap=30"], "logit_softcap=30.0 has no equal in Hugging Face's Llama"),
        (["--qk_norm=True", "--position=learned"], "position=learned cannot be compared with Hugging Face's Qwen3"),
        (["--qk_norm=True", "--bias=True"], "bias=True has no equal in Hugging Face's Qwen3"),
        (["--position=rope", "--n_embd=18", "--n_head=4", "--head_size=4"], "n_embd=18 is not a multiple of n_head=4"),
        (["--reference=.", "--position=rope"], "position=rope has no equal in nanoGPT"),
        (["--reference=.", "--activation=relu"], "activation=relu has no equal in nanoGPT"),
        (["--reference=nowhere"], "reference=nowhere is neither hf nor a folder with nanoGPT's model.py"),
        (["--steps=0"], "steps=0 is smaller than 1"),
        (["--plot=curve.jpeg"], "plot=curve.jpeg is of no known format; end its name in .png, .svg, .pdf"),
        (["--json=tests"], "json=tests is a folder; name a file"),
        (["--json=README.md/x.json"], "json=README.md/x.json cannot be written"),
        (["--refrence=hf"], "there is no setting --refrence; did you mean --reference?"),
    ],
)
def test_wrong_use_is_one_line(argv, message, command, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises(UserError) as error:
        command(*argv)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def GPT(:", "SyntaxError"),
        ("x = 1", "no attribute 'GPT"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
def test_a_checkout_that_is_none_is_refused(source, why, command, tmp_path):
    (tmp_path / "model.py").write_text(source)
    with pytest.raises(UserError, match=why) as error:
        command(f"--reference={tmp_path}")
    assert "name a folder that holds a checkout" in str(error.value) and "\n" not in str(error.value)
