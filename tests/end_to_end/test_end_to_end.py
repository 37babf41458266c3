"""The two commands a user runs, on real text: train, resume, evaluate, sample; and what they do with bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from nanogpt_jax.bench.records import RECORDS
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.decoding_weights import decoding_weights
from nanogpt_jax.data.dataset import open_tokens, whole_split
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights.loading import open_weights
from tests.helpers.commands import HANGS, ROOT, as_users_compile, command, metrics_of
from tests.helpers.states import assert_same_bits, state_of, tree_of


@pytest.fixture(scope="module", autouse=True)
def _compiled_as_users_do():
    with as_users_compile():
        yield


def final_loss(out):
    return float(re.search(r"^final val loss ([\d.]+) \(whole split, 111539 tokens\)$", out, re.M)[1])


def test_training_learns_and_says_so_in_nanogpts_words(trained):
    steps = re.findall(r"^step (\d+): train loss ([\d.]+), val loss ([\d.]+)$", trained.finished.out, re.M)
    assert [int(step) for step, _, _ in steps] == [0, 100, 200, 300]
    assert float(steps[0][2]) == pytest.approx(np.log(65), abs=0.1)
    assert final_loss(trained.finished.out) < 2.55


def test_the_speedrun_reaches_nanogpts_end_loss(data_dir, tmp_path):
    done = command("train.py", "speedrun_cpu", "--accelerator=cpu", f"--data_dir={data_dir}", f"--out_dir={tmp_path}")
    assert done.status == 0, done.err
    assert final_loss(done.out) <= RECORDS["speedrun_cpu"].loss


def test_metrics_tell_the_run(trained):
    lines = metrics_of(trained.out_dir)
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(0, 300, 10))
    assert [line["step"] for line in lines if line["split"] == "val"] == [0, 100, 200, 300]
    assert {"step", "split", "loss", "learning_rate", "tokens_per_second", "seconds"} == set(lines[3])
    assert lines[-1]["split"] == "val_whole"
    assert lines[-1]["loss"] == pytest.approx(final_loss(trained.finished.out), abs=1e-4)


def test_config_json_tells_how_to_make_it_again(trained):
    config = json.loads((trained.out_dir / "config.json").read_text())
    assert config["settings"]["n_embd"] == 128 and config["seed"] == 1337
    assert config["command"][1] == "shakespeare_char_cpu"
    assert {"jax", "flax", "optax", "python"} <= set(config["versions"])
    assert config["device"]["platform"] == "cpu"


def test_eval_only_prints_the_same_loss_and_writes_nothing(trained, data_dir, tmp_path):
    done = command("train.py", f"--init_from={trained.out_dir}", "--eval_only", f"--data_dir={data_dir}", cwd=tmp_path)
    assert done.status == 0, done.err
    assert final_loss(done.out) == final_loss(trained.finished.out)
    assert list(tmp_path.iterdir()) == []


SMALL = ("gpt_dev", "--n_layer=1", "--eval_interval=20", "--eval_iters=2", "--dropout=0.1")


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("undisturbed")
    done = command("train.py", *SMALL, "--max_iters=60", f"--data_dir={data_dir}", f"--out_dir={out_dir}")
    assert done.status == 0, done.err
    return out_dir


def test_a_resumed_run_ends_in_the_same_bits(undisturbed, data_dir, tmp_path):
    out_dir = tmp_path / "run"
    flags = (f"--data_dir={data_dir}", f"--out_dir={out_dir}")
    assert command("train.py", *SMALL, "--max_iters=40", f"--profile={tmp_path / 'trace'}", *flags).status == 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb")), "no trace was written"
    done = command("train.py", "--init_from=resume", "--max_iters=60", "--profile=none", *flags)
    assert done.status == 0, done.err
    assert_same_bits(state_of(out_dir), state_of(undisturbed))
    told = [[(line["step"], line["split"], line["loss"]) for line in metrics_of(run)] for run in (out_dir, undisturbed)]
    assert told[0] == told[1]


def test_an_interrupted_run_saves_and_goes_on_to_the_same_bits(undisturbed, data_dir, tmp_path):
    out_dir = tmp_path / "run"
    argv = [*SMALL, "--max_iters=60", f"--data_dir={data_dir}", f"--out_dir={out_dir}"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *argv], stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("iter 10:"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(HANGS) == 143
    assert f"--init_from=resume --out_dir={out_dir}" in rest
    done = command("train.py", "--init_from=resume", f"--out_dir={out_dir}")
    assert done.status == 0, done.err
    assert_same_bits(state_of(out_dir), state_of(undisturbed))


def test_a_new_run_sets_the_old_one_aside(undisturbed, data_dir, tmp_path):
    out_dir = tmp_path / "run"
    shutil.copytree(undisturbed, out_dir)
    done = command("train.py", *SMALL, "--max_iters=1", f"--data_dir={data_dir}", f"--out_dir={out_dir}")
    assert done.status == 0, done.err
    assert "held a run" in done.out
    assert (out_dir / "previous" / "1" / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    assert max(line["step"] for line in metrics_of(out_dir)) == 1


def test_fine_tuning_starts_from_the_weights_of_a_run(trained, data_dir, tmp_path):
    done = command(
        "train.py", "shakespeare_char_cpu", f"--init_from={trained.out_dir}", "--max_iters=2", "--eval_iters=5",
        f"--data_dir={data_dir}", f"--out_dir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert float(re.search(r"step 0: .* val loss ([\d.]+)", done.out)[1]) < 2.7


def test_bigram_trains_and_speaks(data_dir, tmp_path):
    short = ("--max_iters=100", "--eval_iters=2")
    done = command("train.py", "bigram", *short, f"--data_dir={data_dir}", f"--out_dir={tmp_path}")
    assert done.status == 0, done.err
    assert "4,225 parameters" in done.out
    done = command("sample.py", f"--out_dir={tmp_path}", "--num_samples=1", "--max_new_tokens=20")
    assert done.status == 0, done.err


def samples(out):
    return out.split("\n---------------\n")[:-1]


def test_sampling_continues_the_prompt(trained, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("ROMEO:\n")
    flags = (f"--out_dir={trained.out_dir}", "--num_samples=2", "--max_new_tokens=150")
    done = command("sample.py", *flags, f"--start=FILE:{prompt}")
    assert done.status == 0, done.err
    texts = samples(done.out)
    assert [len(text) for text in texts] == [157, 157]
    assert all(text.startswith("ROMEO:\n") for text in texts) and texts[0] != texts[1]
    assert sum(text.count(" ") for text in texts) > 20  # it has learnt that there are words
    alone = command("sample.py", *flags[:1], "--num_samples=1", "--max_new_tokens=150", "--start=ROMEO:\n")
    assert samples(alone.out)[0] == texts[0]


def test_int8_weights_keep_the_loss_and_speak(trained, data_dir, tmp_path):
    weights = open_weights(str(trained.out_dir))
    model = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
    params = weights.load(model)
    val = open_tokens(data_dir / "shakespeare_char" / "val.bin", weights.vocab_size, model.config.block_size)
    (tokens, targets), _ = next(whole_split(val, 256, model.config.block_size))
    mean = np.full(tokens.shape, 1 / tokens.size, np.float32)
    loss = jax.jit(lambda variables: model.apply(variables, tokens, targets, mean, method="loss"))
    exact, quantized = (float(loss(v)) for v in ({"params": params}, decoding_weights(model, params, "int8")))
    assert quantized == pytest.approx(exact, abs=0.01) and quantized != exact

    flags = (f"--out_dir={trained.out_dir}", "--num_samples=1", "--max_new_tokens=80", "--quantize=int8")
    done = command("sample.py", *flags, "--start=ROMEO:", cwd=tmp_path)
    assert done.status == 0, done.err
    assert len(samples(done.out)[0]) == 86


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize=int4"], "quantize='int4' is not one of none, int8"),
        (["--start=naïve"], "'ï' (U+00EF) at position 2"),
        (["--start="], "the prompt is empty"),
        (["--start=FILE:missing.txt"], "start=FILE:missing.txt cannot be read"),
        (["--top_k=0"], "top_k=0 leaves no token"),
        (["--temperature=-1"], "temperature=-1.0"),
        (["--num_samples=0"], "num_samples=0 is smaller than 1"),
        (["--seed=4294967296"], "seed=4294967296 is larger than 4294967295"),
        (["--max_new_tokens=0"], "max_new_tokens=0 is smaller than 1"),
        (["--out_dir=missing"], "missing holds no run"),
    ],
)
def test_bad_input_to_sampling_is_one_line(trained, flags, message, tmp_path):
    out_dir = () if any(flag.startswith("--out_dir") for flag in flags) else (f"--out_dir={trained.out_dir}",)
    done = command("sample.py", *out_dir, *flags, cwd=tmp_path)
    assert done.status == 2
    assert done.err.startswith("error: ") and message in done.err and len(done.err.splitlines()) == 1


@pytest.fixture(scope="module")
def small_data(data_dir, tmp_path_factory):
    """A data folder with sets of its own to spoil: one short, one truncated, one unsealed, one of other tokens."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("short", "truncated", "unsealed", "outside", "pickled"):
        shutil.copytree(data_dir / "shakespeare_char", folder / name)
    text = folder / "play.txt"
    text.write_text("to be or not to be " * 20)
    assert command("data/prepare.py", text, "--name=short", f"--data_dir={folder}").status == 0
    with open(folder / "truncated" / "train.bin", "r+b") as file:
        file.truncate(1001)
    (folder / "unsealed" / "meta.json").unlink()
    with open(folder / "outside" / "val.bin", "r+b") as file:
        file.write(b"\xff\xff")
    (folder / "pickled" / "meta.json").rename(folder / "pickled" / "meta.pkl")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=missing"], "missing"),
        (["--dataset=short"], "block_size=64 does not fit"),
        (["--dataset=truncated"], "1,001 bytes where"),
        (["--dataset=unsealed"], "meta.json"),
        (["--dataset=outside"], "token 65535 at position 0, outside the vocabulary of 65"),
        (["--dataset=pickled"], "meta.pkl"),
        (["--dataset=short", "--block_size=8", "--vocab_size=5"], "vocab_size=5 is smaller"),
        (["--init_from=resume"], "holds no run"),
        (["--init_from=nowhere"], "nowhere"),
    ],
)
def test_bad_input_to_training_is_one_line_and_changes_nothing(small_data, flags, message, tmp_path):
    before = tree_of(small_data)
    done = command("train.py", "shakespeare_char_cpu", *flags, f"--data_dir={small_data}", cwd=tmp_path)
    assert done.status == 2
    assert done.err.startswith("error: ") and message in done.err and len(done.err.splitlines()) == 1
    assert tree_of(small_data) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n_layer=5"], "n_layer=5 does not fit the run"),
        (["--max_iters=10"], "max_iters=10 lies behind the run"),
        (["--learning_rate=-1"], "learning_rate=-1.0"),
    ],
)
def test_a_run_is_not_resumed_as_something_else(undisturbed, flags, message):
    before = tree_of(undisturbed)
    done = command("train.py", "--init_from=resume", f"--out_dir={undisturbed}", *flags)
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert message in done.err
    assert tree_of(undisturbed) == before


def test_an_out_dir_that_cannot_be_written_is_refused(data_dir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = command("train.py", *SMALL, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'file'}")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "cannot be written" in done.err
