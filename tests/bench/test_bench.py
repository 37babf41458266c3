"""The benchmark: its numbers belong together, it counts right, and it leaves nothing behind."""

import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys

import jax
import pytest
import torch

from nanogpt_jax.bench import command, growth, limits, tasks, torch_side
from nanogpt_jax.bench.measure import Case, Limit, Result, SideResult, Start
from nanogpt_jax.bench.report import training_tables
from nanogpt_jax.bench.rounds import Worker, WorkerDied
from nanogpt_jax.bench.side import Unavailable
from nanogpt_jax.core.decoding_weights import decoding_weights
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.run.presets import preset
from nanogpt_jax.run.telemetry import flops_per_token
from nanogpt_jax.weights.hf_format import hf_config_of
from nanogpt_jax.weights.nanogpt_format import nanogpt_model_args_of
from tests.helpers.commands import HANGS, ROOT, awaited
from tests.helpers.torch_twin import CHECKOUT

TINY = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2)
FLAGS = [f"--{name}={value}" for name, value in TINY.items()] + ["--accelerator=cpu", "--data_dir=none"]
# Neither program compiles its best: that takes most of a minute, and no speed is tested here.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TORCH_COMPILE_DISABLE": "1", "PYTHONPATH": str(ROOT)}
# Tokens that each case of sampling draws at a time.
DRAWN = {"one text, within the block": 15, "one text, past the block": 32, "8 texts, within the block": 8 * 15}


def started(*argv):
    """The command as a process of its own."""
    command = [sys.executable, "-m", "nanogpt_jax.bench", *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **QUICK}, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the command prints and writes for both tasks, at a tiny shape: (stdout, document, picture) of each."""
    folder = tmp_path_factory.mktemp("bench")
    found = {}
    with contextlib.ExitStack() as stack:
        for task in ("train", "sample"):  # side by side: that their times suffer is no matter here
            files = [f"--json={folder / task}.json", f"--plot={folder / task}.png"]
            process = stack.enter_context(started(task, *FLAGS, "--rounds=2", "--seconds=0.05", *files))
            stack.callback(process.kill)
            found[task] = process
        told = {task: process.communicate(timeout=HANGS) for task, process in found.items()}
    for task, (out, err) in told.items():
        assert found[task].returncode == 0, err
        document = json.loads((folder / f"{task}.json").read_text())
        found[task] = out, document, (folder / f"{task}.png").read_bytes()
    return found


def test_all_rows_of_training_are_there(measured):
    out, document, plot = measured["train"]
    [result] = document["results"]
    [case] = result["cases"]
    assert [side["name"] for side in case["sides"]] == ["nanogpt-jax", "PyTorch, eager", "PyTorch, compiled"]
    rows = [line.split(" | ")[0].removeprefix("| ").strip() for line in out.splitlines() if line.startswith("| ")]
    rows = ["---" if set(row) == {"-"} else row for row in rows]
    assert [row for row in rows if not row.startswith("share of")] == [
        "training", "---", "time per update, median", "least .. most of the rounds", "tokens per second",
        "ours is so many times as fast, median", "peak memory of the process",
        "the same, compilation cache empty", "process start to first update",
        "the same, compilation cache empty", "of that, tracing and compiling",
        "how many times as fast, round by round", "---", "training, to PyTorch, eager",
        "training, to PyTorch, compiled",
    ]  # fmt: skip
    assert "from random tokens" in out
    assert {"command", "date", "machine", "device", "versions", "settings"} <= document.keys()
    assert result["start"]["cold"] > result["start"]["cold_compile"] > 0
    assert plot.startswith(b"\x89PNG")


def test_all_rows_of_sampling_are_there(measured):
    out, document, plot = measured["sample"]
    [result] = document["results"]
    assert [case["name"] for case in result["cases"]] == list(DRAWN)
    assert all([side["name"] for side in case["sides"]] == ["nanogpt-jax", "PyTorch"] for case in result["cases"])
    assert all(f"\n| {name}" in out and f"\n| {name}, to PyTorch" in out for name in DRAWN)
    assert "8 texts at once give so many times the tokens per second of one" in out
    assert plot.startswith(b"\x89PNG")


@pytest.mark.parametrize("task", ["train", "sample"])
def test_ratios_and_rates_follow_from_the_rounds(task, measured):
    [result] = measured[task][1]["results"]
    tokens = {"training": 2 * 16, **DRAWN}
    for case in result["cases"]:
        ours, *others = case["sides"]
        assert ours["ratios"] is None
        for theirs in others:
            assert theirs["ratios"] == [b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
            assert theirs["ratio"] == statistics.median(theirs["ratios"])
        for side in case["sides"]:
            assert len(side["seconds"]) == 2
            assert side["tokens_per_second"] == tokens[case["name"]] / statistics.median(side["seconds"])
            share = side["tokens_per_second"] * case["per_token"] / case["limit"]["rate"]
            assert side["share_of_limit"] == pytest.approx(share)
            assert side["peak_memory"] > 1e8 and side["first_seconds"] > 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_no_process_is_left_behind(number, status):
    with started("train", *FLAGS, "--against=none") as process:
        awaited(lambda: children(process.pid), process)
        workers = children(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=HANGS)
    assert workers and process.returncode == status, err
    assert "Traceback" not in err
    awaited(lambda: not any(is_alive(worker) for worker in workers))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children(pid):
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def test_a_worker_that_dies_is_one_line(monkeypatch, capsys):
    spec = {"program": "nanogpt-jax", "task": "sample", "settings": {"no_such_setting": 1}}
    with pytest.raises(WorkerDied, match=r"^the process of ours ended with status 1: TypeError[^\n]*no_such_setting"):
        Worker("ours", spec, {})

    def die(plan):
        raise WorkerDied("the process of ours was killed by signal 9")

    monkeypatch.setattr(tasks, "measure_training", die)
    assert command.main(["train", *FLAGS, "--against=none"]) == 1
    assert capsys.readouterr().err == "error: the process of ours was killed by signal 9\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say what to measure"),
        (["speed"], "task='speed' is not one of train, sample, all, growth"),
        (["train", "--against=keras"], "against='keras' is not one of torch, hf, none"),
        (["train", "--rounds=0"], "rounds=0 is smaller than 1"),
        (["train", "--seconds=0"], "seconds=0.0 is not a time above 0"),
        (["train", "--seconds=nan"], "seconds=nan is not a time above 0"),
        (["sample", "--max_new_tokens=0"], "max_new_tokens=0 is smaller than 1"),
        (["sample", "--max_new_tokens=64"], "max_new_tokens=64 is larger than 63 (that is the room in a block of 64)"),
        (["sample", "--block_size=1"], "block_size=1 is smaller than 2"),
        (["train", "--reference=nowhere"], "reference=nowhere is not a folder with nanoGPT's model.py"),
        (["train", "--reference=.", "--against=hf"], "reference=. is for --against=torch alone"),
        (["train", "bigram"], "model=bigram has nothing to measure"),
        (["train", "--activation=relu"], "activation=relu has no equal in nanoGPT"),
        (["train", "--optimizer=muon"], "optimizer=muon is not what PyTorch trains with; add --optimizer=adamw"),
        (["train", "--position=rope"], "position=rope has no equal in nanoGPT"),
        (
            ["train", "--against=hf", "--position=rope", "--norm=layer"],
            "norm=layer is not what Hugging Face's Llama has",
        ),
        (["train", "--against=hf", "--qk_norm=True", "--logit_softcap=9"], "logit_softcap=9.0 has no equal in Hugging"),
        (["train", "--against=hf", "--bias=False"], "bias=False is not what Hugging Face's GPT-2 has"),
        (["train", "--plot=a.jpeg"], "plot=a.jpeg is of no known format"),
        (["train", "--json=tests"], "json=tests is a folder"),
        (["train", "--round=3"], "there is no setting --round; did you mean --rounds?"),
        (["train", "--preset=gpt5"], "there is no preset 'gpt5'"),
        (["train", "gpt_dev", "--preset=gpt2"], "preset=gpt2 is a second one, after gpt_dev"),
        (["growth", "--axis=n_layer"], "axis='n_layer' is not one of block_size, n_embd, batch_size"),
        (["train", "--axis=n_embd"], "axis=n_embd is of growth alone"),
        (["growth", "--against=hf"], "against=hf has no meaning for growth"),
    ],
)
def test_wrong_use_is_one_line(argv, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        command.main(argv)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_wrong_use_is_exit_status_2():
    with started("train", "--rounds=none") as process:
        out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(("against", "package"), [("torch", "torch"), ("hf", "transformers")])
def test_without_the_extra_one_line_says_what_to_install(against, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"^--against={against} needs {package}, .*; pip install -e '\.\[torch\]'$"):
        command.main(["train", *FLAGS, f"--against={against}"])


def test_without_an_other_side_nothing_of_pytorch_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    own = dict.fromkeys(("reference", "axis", "rounds", "seconds", "max_new_tokens", "quantize"))
    plan, source, changed = tasks.plan_of(None, dict(data_dir="none"), {**own, "against": "none"})
    assert (plan.model_args, plan.tokens, plan.vocab_size, changed) == ({}, None, 65, "")
    assert source.startswith("random tokens")


def test_hugging_face_is_met_with_the_model_it_has():
    own = dict.fromkeys(("reference", "axis", "rounds", "seconds", "max_new_tokens", "quantize"))
    plan, _, changed = tasks.plan_of(None, dict(TINY, data_dir="none"), {**own, "against": "hf"})
    assert (plan.settings.bias, plan.settings.activation) == (True, "gelu_new")
    assert changed == "bias=True, activation=gelu_new to agree with Hugging Face's GPT-2"


def spec_of(program, folder):
    """What a worker of PyTorch is told to build."""
    (folder / "model.py").write_text(CHECKOUT)
    hf = program in ("hf", "hf, a Llama")
    llama = dict(position="rope", norm="rms", activation="swiglu", n_kv_head=1, tie_word_embeddings=False)
    changes = {"hf": {"bias": True, "activation": "gelu_new"}, "hf, a Llama": llama}.get(program, {})
    settings = preset("shakespeare_char_cpu", gradient_accumulation_steps=2, **TINY, **changes)
    return {
        "settings": vars(settings),
        "program": "hf" if hf else "torch",
        "reference": str(folder) if program == "nanogpt" else None,
        "model_args": (hf_config_of if hf else nanogpt_model_args_of)(settings.gpt_config(65)),
        "tokens": None,
        "vocab_size": 65,
        "platform": "cpu",
        "dtype": "float32",
        "compile": False,
        "cases": {"within": (1, 15, 2)},
        "temperature": 0.8,
        "top_k": 200,
    }


@pytest.mark.parametrize("program", ["torch", "nanogpt", "hf", "hf, a Llama"])
def test_every_program_of_pytorch_trains_and_draws_texts(program, tmp_path):
    """`Sampling.run` refuses a text of another shape than asked for."""
    spec = spec_of(program, tmp_path)
    torch_side.Training(spec).run("step", 2)
    torch_side.Sampling(spec).run("within", 1)


def test_a_machine_that_cannot_compile_is_no_failure(monkeypatch, tmp_path):
    def refuse(*batch):
        raise RuntimeError("no C++ compiler\nmore about it")

    monkeypatch.setattr(torch, "compile", lambda loss: refuse)
    with pytest.raises(Unavailable, match=r"^torch\.compile does not work here \(no C\+\+ compiler\)$"):
        torch_side.Training({**spec_of("torch", tmp_path), "compile": True}).run("step", 1)
    case = Case("training", [SideResult("nanogpt-jax", [1.0], 32.0, 0.5, None, 1, 1.0)], Limit(1e9, "B/s", "it"), 1.0)
    result = Result("train", {}, [case], Start(1.0, 1.0, 1, 1.0, 1.0, 1), {"PyTorch, compiled": "it cannot"}, None)
    assert "\nPyTorch, compiled was not measured: it cannot." in training_tables(result)


def test_the_plain_model_of_pytorch_is_the_one_that_is_measured():
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, bias=False)
    module = torch_side.PlainGPT(**nanogpt_model_args_of(config))
    ours = sum(p.size for p in jax.tree.leaves(init_params(GPT(config), 0)))
    assert sum(p.numel() for p in module.parameters()) == ours
    tokens = torch.arange(8)[None]
    changed = torch.where(torch.arange(8) < 5, tokens, 10)
    same = (module.hidden(tokens) - module.hidden(changed)).abs().amax(-1)[0] < 1e-6
    assert same.tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize("tied", [True, False])
def test_operations_and_bytes_are_those_of_the_closed_form(tied):
    L, C, T, V = 3, 32, 24, 50
    settings = preset("shakespeare_char_cpu", n_layer=L, n_embd=C, block_size=T, tie_word_embeddings=tied)
    model = GPT(settings.gpt_config(V))
    params = init_params(model, 0)
    matrices, vectors = L * 12 * C * C, (2 * L + 1) * C  # no biases; the last layer norm is outside the blocks
    tables = V * C if tied else 2 * V * C
    assert flops_per_token(settings, params) == 6 * (matrices + vectors + tables) + 12 * L * C * T
    in_blocks = matrices + 2 * L * C
    assert limits.reading_flops(settings, params) == T * (2 * in_blocks + 4 * L * C * T) + 2 * V * C
    assert limits.weight_bytes(decoding_weights(model, params)) == 4 * (matrices + vectors + V * C)
    outputs = L * 9 * C + V  # each has a scale of its own: c_attn 3C, two c_proj C each, c_fc 4C, the head
    small = limits.weight_bytes(decoding_weights(model, params, "int8"))
    assert small == matrices + V * C + 4 * (outputs + vectors)
    per_position = limits.cache_bytes_per_position(model)
    assert per_position == 4 * 2 * L * C
    steps = [1000 + 4 * per_position * (5 + index) for index in range(9)]  # a text of 9 tokens, 4 at once
    assert limits.bytes_per_token(1000, per_position, 5, 9, 4) == pytest.approx(sum(steps) / (4 * 9))


@pytest.mark.parametrize("tied", [True, False])
def test_operations_and_bytes_of_a_llama_are_those_of_the_closed_form(tied):
    L, C, T, V, H, K, D, M = 3, 32, 24, 50, 4, 2, 6, 20
    settings = preset(
        "shakespeare_char_cpu", n_layer=L, n_embd=C, block_size=T, tie_word_embeddings=tied, position="rope",
        norm="rms", activation="swiglu", n_head=H, n_kv_head=K, head_size=D, mlp_size=M, qk_norm=True,
    )  # fmt: skip
    model = GPT(settings.gpt_config(V))
    params = init_params(model, 0)
    matrices, vectors = L * (2 * C * (H + K) * D + 3 * C * M), L * (2 * C + 2 * D) + C
    tables = V * C if tied else 2 * V * C
    assert flops_per_token(settings, params) == 6 * (matrices + vectors + tables) + 12 * L * H * D * T
    in_blocks = matrices + vectors - C
    assert limits.reading_flops(settings, params) == T * (2 * in_blocks + 4 * L * H * D * T) + 2 * V * C
    assert limits.weight_bytes(decoding_weights(model, params)) == 4 * (matrices + vectors + V * C)
    outputs = L * ((H + 2 * K) * D + 2 * C + 2 * M) + V
    assert limits.weight_bytes(decoding_weights(model, params, "int8")) == matrices + V * C + 4 * (outputs + vectors)
    assert limits.cache_bytes_per_position(model) == 4 * 2 * L * K * D


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7, 2.0])
def test_the_exponent_of_a_known_law_is_found(power):
    sizes = [64, 128, 256, 512, 1024, 2048]
    costs = [max(3e-3, 1e-7 * size**power) if size < 512 else 1e-7 * size**power for size in sizes]
    assert growth.exponent(sizes, costs) == pytest.approx(power, abs=1e-9)


def test_growth_has_a_cost_for_every_size(tmp_path):
    settings = preset("shakespeare_char_cpu", vocab_size=65, accelerator="cpu", **TINY)
    [measured] = growth.measure_growth(settings, {"batch_size": (2, 8, 64)}, seconds=0.02)
    assert [(cost.size, cost.tokens) for cost in measured.costs] == [(2, 32), (8, 128), (64, 1024)]
    assert all(cost.seconds > 0 and cost.bytes > cost.temporary_bytes > 0 for cost in measured.costs)
    assert 0.5 < measured.memory_exponent < 1.1
    assert math.isfinite(measured.time_exponent)
    text = growth.growth_tables([measured])
    assert text.count("\n| ") == 4 and "temporary memory ~ batch_size^" in text
    growth.write_growth_plot(tmp_path / "growth.svg", [measured], "base")
    assert b"<svg" in (tmp_path / "growth.svg").read_bytes()
