"""`bench gpu`: all of it in bounded time, a part after the other, of which none takes the rest with it."""

import json
import subprocess
import sys
import types

import pytest

from nanogpt_jax.bench import command, gpu, measure, parity_side, tasks
from nanogpt_jax.bench.measure import Case, Limit, Result, SideResult, Start
from nanogpt_jax.bench.parity_side import Parity
from nanogpt_jax.bench.rounds import OutOfMemory, Worker, WorkerDied
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.run import reports

TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--vocab_size=65", "--data_dir=none"]
CPU = {"platform": "cpu", "device": "cpu", "devices": 1, "dtype": "float32", "attention": "xla", "kernels": ["xla"]}
FACTS = {"rows": [{"verdict": "ok"}] * 3, "told": "a table"}
SIDE = SideResult("nanogpt-jax", [0.5, 0.25, 1.0], 64.0, 0.4, None, 2**21, 3.0)
THEIRS = SideResult("PyTorch, compiled", [1.0, 1.0, 1.0], 32.0, 0.2, [2.0, 4.0, 1.0], 2**22, 9.0)
PEAK = Limit(989e12, "FLOP/s", "published for it, bfloat16")


def result_of(task, against, *names):
    sides = [SIDE] if against == "none" else [SIDE, THEIRS]
    cases = [Case(name, sides, PEAK, 1.0) for name in names]
    return Result(task, {}, cases, Start(4.0, 2.0, 1, 3.0, 1.0, 1) if task == "train" else None, {}, None)


@pytest.fixture
def bench(monkeypatch, tmp_path, capsys):
    """The command at toy size where measuring takes no time: its exit as a text, what it prints, what it has written.

    A function in `parts` takes the place of a part's measuring.
    """
    path = tmp_path / "gpu.json"

    def run(*argv, device=CPU, **parts):
        usual = {
            "measure_training": lambda plan: result_of("train", plan.against, "training"),
            "measure_sampling": lambda plan: result_of("sample", plan.against, measure.WITHIN, "8 texts, within"),
            "device_of": lambda plan: device,
            "started": lambda *_: types.SimpleNamespace(facts=dict(FACTS)),
        }
        for name, function in {**usual, **parts}.items():
            monkeypatch.setattr(tasks if name == "device_of" else gpu, name, function)
        said = ""
        try:
            command.main(["gpu", *TINY, "--accelerator=cpu", f"--json={path}", *argv])
        except RunFailed as error:
            said = str(error)
        return said, capsys.readouterr().out, json.loads(path.read_text())

    run.path = path
    return run


def last_table(out):
    """The rows of the table of all, by their first cell."""
    rows = out[out.index("| measured") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows[2:]]
    return {name: rest for name, *rest in cells}


def test_all_of_it_at_toy_size(monkeypatch, tmp_path, capsys):
    """Processes and all; PyTorch's take part in test_bench.py."""
    monkeypatch.setattr(measure, "_LIMIT_TURNS", 1)
    monkeypatch.chdir(tmp_path)
    argv = ["gpu", *TINY, "--batch_size=2", "--accelerator=cpu", "--against=none", "--rounds=1", "--seconds=0.01"]
    assert command.main(argv) == 0
    table = last_table(capsys.readouterr().out)
    texts = [f"{case}, tokens per second" for case in ("one text, within the block", "8 texts, within the block",
             "64 texts, within the block")]  # fmt: skip
    for row in ("update of 2 x 16 tokens", "peak memory", "the same, nothing compiled before", *texts):
        assert table[row][0], row
    assert table["attention=xla"][0] == "the only kernel that runs here"
    document = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert [part["state"] for part in document["parts"].values()] == ["done"] * 3
    assert document["device"]["kernels"] == ["xla"] and document["settings"]["gradient_accumulation_steps"] == 1


def test_the_table_has_what_the_parts_found(bench):
    said, out, document = bench()
    assert said == "" and list(document["parts"]) == [
        "training", "parity in float32", "parity in bfloat16", "sampling", "kernels",
    ]  # fmt: skip
    table = last_table(out)
    assert table["update of 64 x 16 tokens, beside PyTorch, compiled"] == ["500 ms", "1.00 s", "2.00"]
    assert table["MFU, of 989,000 GFLOP/s"][:2] == ["40.0%", "20.0%"]
    assert table["process start to first update"][:2] == ["3.00 s", "9.00 s"]
    assert table["parity in bfloat16"][0] == "all 3 tolerances hold"
    assert table["8 texts, within, tokens per second"] == ["64.0", "32.0", "2.00"]


def test_the_largest_batch_that_fits_is_measured(bench):
    tried = []

    def fits_16(plan):
        tried.append(plan.settings.batch_size)
        assert not plan.eager
        if plan.settings.batch_size > 16:
            raise OutOfMemory("the process of PyTorch ran out of memory")
        return result_of("train", "torch", "training")

    said, out, document = bench(measure_training=fits_16)
    assert said == "" and tried == [64, 32, 16]
    assert "update of 16 x 16 tokens" in out and document["parts"]["training"]["figures"]["batch_size"] == 16
    tried.clear()
    said, *_ = bench("--batch_size=40", measure_training=fits_16)
    assert tried == [40] and "training failed" in said


def test_what_fails_is_named_and_the_rest_is_measured(bench):
    def fail(plan):
        written = json.loads(bench.path.read_text())["parts"]
        assert written["training"]["state"] == "done"  # before this is begun
        raise ZeroDivisionError("of a kind\nnobody foresaw")

    said, out, document = bench(measure_sampling=fail)
    assert "(sampling failed)" in said and "run it again" in said
    assert last_table(out)["sampling"][0] == "failed" and "sampling, failed: ZeroDivisionError: of a kind nobody" in out
    assert [part["state"] for part in document["parts"].values()] == ["done", "done", "done", "failed", "done"]


def test_without_the_side_that_died_ours_is_measured(bench):
    def die(plan):
        if plan.against != "none":
            raise WorkerDied("the process of PyTorch, compiled ended with status 1: ImportError: libcudnn")
        return result_of("train", "none", "training")

    said, out, _ = bench(measure_training=die)
    assert "training in part" in said
    assert last_table(out)["update of 64 x 16 tokens"][0] == "500 ms" and "ended with status 1: ImportError" in out


def test_a_missed_tolerance_is_named(bench):
    facts = {"rows": [{"verdict": "ok", "quantity": "loss"}, {"verdict": "MISSED", "quantity": "logits"}], "told": ""}
    said, out, _ = bench(started=lambda *_: types.SimpleNamespace(facts=dict(facts)))
    assert "parity in float32 missed, parity in bfloat16 missed" in said
    assert last_table(out)["parity in float32"][0] == "1 of 2 tolerances MISSED"
    assert "parity in float32, missed: logits" in out


def test_past_its_time_it_measures_nothing_more(bench):
    died = []

    def wait(plan):
        worker = {"program": "nanogpt-jax", "task": "device", "settings": {}}
        try:
            return Worker("a worker", worker, {})
        except BaseException as error:
            died.append(error)
            raise

    said, out, document = bench("--budget=0.1", measure_training=wait)
    assert document["parts"]["training"]["why"] == "the process of a worker had no more time" and len(died) == 1
    assert "training left out" in said
    said, out, document = bench("--budget=1e-9")
    assert all(part["why"] == "no time was left" for part in document["parts"].values())
    assert last_table(out)["kernels"][0] == "left out"


def test_the_kernels_that_a_device_has_are_measured_beside_each_other(bench, monkeypatch):
    asked = []

    def start(stack, name, spec, environment=None):
        asked.append((name, spec, environment))
        return types.SimpleNamespace(name=name, facts={"rows": [], "told": ""})

    def took(workers, case, rounds, seconds):
        return {worker.name: [0.1] if worker.name == "cudnn" else [0.2] for worker in workers}

    monkeypatch.setattr(gpu, "alternate", took)
    device = {**CPU, "platform": "gpu", "attention": "cudnn", "kernels": ["xla", "cudnn"]}
    _, out, _ = bench(device=device, started=start)
    table = last_table(out)
    assert table["update with attention=cudnn, chosen"][0] == "100 ms"
    assert table["update with attention=xla"][0] == "200 ms"
    assert [(name, spec["settings"]["batch_size"]) for name, spec, _ in asked[2:]] == [("xla", 64), ("cudnn", 64)]
    assert "parity in float32, TF32 off" in table  # else float32's tolerances are none of a GPU's
    (*_, in_float32), (*_, in_bfloat16), *_ = asked
    assert in_float32["NVIDIA_TF32_OVERRIDE"] == "0" and in_bfloat16 == {}


def test_parity_is_what_compare_finds(bench, monkeypatch):
    """What it finds is in tests/compare."""

    def compared(base, explicit, reference, steps, *, json):
        print(f"{reference}, {steps} steps")
        rows = [{"verdict": "ok", "quantity": "loss"}]
        reports.write_json(json, {"rows": rows, "settings": vars(Settings(**{**base, **explicit}))})

    def start(stack, name, spec, environment=None):
        side = Parity(spec)
        side.run(side.first, 1)
        return types.SimpleNamespace(facts=json.loads(json.dumps(side.facts())))

    monkeypatch.setattr(parity_side, "compared", compared)
    _, out, document = bench("--block_size=256", started=start)
    asked = [document["parts"][f"parity in {dtype}"]["figures"]["settings"] for dtype in ("float32", "bfloat16")]
    assert [settings["dtype"] for settings in asked] == ["float32", "bfloat16"]
    assert all(
        (settings["n_embd"], settings["block_size"], settings["batch_size"]) == (16, 128, 1) for settings in asked
    )
    assert "hf, 2 steps" in out


def test_parity_is_found_in_a_process_of_its_own(bench):
    def start(stack, name, *arguments):
        return (
            measure.started(stack, name, *arguments) if "float32" in name else types.SimpleNamespace(facts=dict(FACTS))
        )

    said, out, _ = bench("--bias=False", started=start)
    assert "(parity in float32 failed)" in said
    assert "failed: bias=False cannot be compared with Hugging Face's GPT-2; add --bias=True" in out


@pytest.mark.parametrize("error", ["MemoryError()", "RuntimeError('RESOURCE_EXHAUSTED')", "OSError('out of memory')"])
def test_a_worker_says_that_memory_ran_out(error):
    replaced = f"def built(spec): raise {error}\nworker._built = built\nworker.main()"
    program = f"from nanogpt_jax.bench import worker\n{replaced}"
    done = subprocess.run([sys.executable, "-c", program], input="{}\n", capture_output=True, text=True, check=True)
    assert list(json.loads(done.stdout)) == ["out_of_memory"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpu", "--budget=0"], "budget=0.0 is not a time above 0"),
        (["gpu", "--plot=a.png"], "plot=a.png has no meaning for gpu"),
        (["gpu", "--against=keras"], "against='keras' is not one of"),
        (["gpu", "--axis=n_embd"], "axis=n_embd is of growth alone"),
        (["train", "--budget=9"], "budget is of gpu alone"),
        (["gpu"], "accelerator=gpu is not there"),
    ],
)
def test_wrong_use_is_one_line(argv, message, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # were there a GPU, it would be measured
    with pytest.raises(UserError) as error:
        command.main(argv)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []
