"""The command lines: nanoGPT's names carry over, and every mistake is one plain line and exit status 2."""

import io
import os
import shlex
import subprocess
import sys

import pytest

from nanogpt_jax.__main__ import COMMANDS
from nanogpt_jax.cli import entry, sample, train
from nanogpt_jax.cli.flags import read_settings
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.commands import start_of
from nanogpt_jax.run import loop
from tests.helpers.commands import HANGS, ROOT, command
from tests.helpers.tiny import TINY, prepare_tiny


@pytest.fixture
def settings_of(monkeypatch):
    """Parse a command line of train.py and give the settings it would train with."""

    def parse(*argv):
        seen = []
        monkeypatch.setattr(loop, "train", lambda settings, given: seen.append(settings))
        assert train.main(argv) == 0
        return seen[0]

    return parse


def test_a_nanogpt_command_line_carries_over(settings_of):
    s = settings_of(
        "shakespeare_char", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64",
        "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000",
        "--dropout=0.0",
    )  # fmt: skip
    assert (s.accelerator, s.eval_iters, s.n_embd, s.dropout, s.learning_rate) == ("cpu", 20, 128, 0.0, 1e-3)


def test_nanogpts_flags_without_a_meaning_here_are_named_and_not_fatal(settings_of, capsys):
    line = ("gpt_dev", "--compile=False", "--backend=gloo", "--device=mps", "--wandb_log=False")
    assert (settings_of(*line).accelerator, settings_of(*line).wandb) == ("auto", False)
    said = capsys.readouterr().err.splitlines()[:3]
    assert [line.split()[0] for line in said] == ["compile=False", "backend=gloo", "device=mps"]
    assert settings_of("gpt_dev", "--compile=True", "--device=cpu").accelerator == "cpu"
    assert capsys.readouterr().err == ""


def test_what_nanogpt_logs_means_nothing_where_nothing_is_logged():
    assert read_settings(SampleSettings, ["--wandb_log=True", "--num_samples=2"], "sample", "").num_samples == 2


def test_dashes_and_underscores_are_alike_and_switches_may_stand_alone(settings_of):
    assert settings_of("gpt_dev", "--n-layer=2", "--max_iters", "7").n_layer == 2
    assert settings_of("--eval-only", "--bias").eval_only
    assert not settings_of("gpt_dev", "--bias=False", "--eval_only=false").bias
    assert settings_of("--bias", "gpt_dev").n_embd == 64
    assert settings_of("gpt_dev", "--qkv_bias=none").qkv_bias is None


def test_without_a_preset_it_says_which_it_takes(settings_of, capsys):
    assert settings_of().n_embd == 128
    assert "no preset named: taking shakespeare_char_cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--init_from=out-mine"], "training as shakespeare_char_cpu does, which suits a CPU; the model is out-mine's"),
        (["--init_from=out-mine", "--eval_only"], ""),
        (["--init_from=resume", "--out_dir=out-mine"], ""),
        (["gpt_dev", "--init_from=resume"], "the run in out-gpt-dev by its own settings; of gpt_dev, the name of its"),
        (["gpt_dev", "--init_from=resume", "--out_dir=out-x"], "in out-x by its own settings; of gpt_dev, nothing is"),
    ],
)
def test_what_is_said_of_a_preset_is_what_is_taken_of_it(settings_of, capsys, argv, said):
    settings_of(*argv)
    out = "".join(line for line in capsys.readouterr().out.splitlines() if not line.startswith("the run is in"))
    assert said in out and bool(said) == bool(out)


@pytest.mark.parametrize(
    ("argv", "out_dir"),
    [
        ([], "out-shakespeare-char"),
        (["--dataset=shakespeare_char"], "out-shakespeare-char"),
        (["--dataset=mine"], "out-shakespeare-char-mine"),
        (["gpt_dev", "--dataset=mine"], "out-gpt-dev-mine"),
        (["gpt_dev", "--dataset=/texts/mine"], "out-gpt-dev-texts-mine"),
        (["gpt_dev", "--dataset=mine", "--out_dir=here"], "here"),
        (["gpt_dev", "--dataset=mine", "--init_from=resume"], "out-gpt-dev-mine"),
    ],
)
def test_a_run_on_another_data_set_than_the_presets_goes_to_a_folder_of_its_own(settings_of, argv, out_dir):
    assert settings_of(*argv).out_dir == out_dir


def test_resume_and_sample_mean_the_same_run(settings_of, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no run in ./out\*"):
        settings_of("--init_from=resume")
    for age, name in enumerate(("out-newest", "out-older", "out-oldest", "elsewhere")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        os.utime(tmp_path / name / "config.json", (10 - age, 10 - age))
    assert settings_of("--init_from=resume").out_dir == "out-newest"
    assert "out_dir: out-newest, the newest run here" in capsys.readouterr().out
    with pytest.raises(UserError, match="out-newest holds no run"):
        sample.main([])
    assert "out_dir: out-newest, the newest run here" in capsys.readouterr().err


def test_settings_come_from_a_file_and_flags_win(settings_of, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "gpt_dev"\nn_layer = 3\nlearning_rate = 1\n')
    s = settings_of(str(file), "--n_layer=5")
    assert (s.n_layer, s.learning_rate, s.n_embd) == (5, 1.0, 64)
    file.write_text("")
    assert settings_of(str(file)).n_layer == 12


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n_heads=4"], "there is no setting --n_heads; did you mean --n_head?"),
        (["--eval_it=4"], "there is no setting --eval_it"),
        (["gpt5"], "there is no preset 'gpt5'"),
        (["gpt_dev", "gpt2"], "'gpt2' is one argument too many"),
        (["--n_layer=four"], "n_layer=four is not a whole number"),
        (["--learning_rate=fast"], "learning_rate=fast is not a number"),
        (["--bias=maybe"], "bias=maybe is neither True nor False"),
        (["--n_layer"], "expected one argument"),
        (["--dtype=float16"], "dtype=float16 needs loss scaling"),
        (["--device=xpu"], "device=xpu is not cpu or cuda"),
        (["--accelerator=abacus"], "accelerator='abacus' is not one of auto, cpu, gpu, tpu"),
        (["config/mine.py"], "settings file config/mine.py cannot be read"),
        (["shakespear_char"], "; did you mean shakespeare_char?"),
        (["missing.toml"], "settings file missing.toml cannot be read"),
        (["--n_embd=130"], "n_embd=130 is not a multiple of n_head=4"),
    ],
)
def test_mistakes_are_named(argv, message):
    with pytest.raises(UserError) as error:
        train.main(argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_heads = 4", "there is no setting n_heads; did you mean n_head?"),
        ("n_layer = ", "is not TOML"),
        ('n_layer = "4"', "n_layer='4' is a str; give a int"),
        ("dataset = true", "dataset=True is a bool; give a str"),
        ("n_layer = [4]", "is a list"),
        ('preset = "gpt5"', "no preset 'gpt5'"),
        ("preset = 5", "no preset 5"),
        ('preset = ["gpt_dev"]', "no preset ['gpt_dev']"),
        ("n_layer = \xff", "is not UTF-8 text"),
    ],
)
def test_mistakes_in_a_settings_file_are_named(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        train.main([str(file)])
    assert message in str(error.value)


def test_help_is_grouped_and_shows_the_presets(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "presets: bigram, gpt_dev" in text
    for group in ("run:", "data:", "model:", "optimizer:", "system:"):
        assert f"\n{group}\n" in text


def test_a_mistake_ends_the_process_with_status_2_and_one_line(tmp_path):
    done = command("train.py", "--n_heads=4", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err == "error: there is no setting --n_heads; did you mean --n_head?\n"
    assert list(tmp_path.iterdir()) == []


SLOW = ("jax", "flax", "optax", "orbax", "matplotlib")
NEEDED = {"evaluate": ["run"], "plot": ["run"], "convert": ["run", "hf"]}  # arguments that are missed before all else


@pytest.fixture
def without_what_is_slow(tmp_path, monkeypatch):
    """Start a command, as its help says, where importing what is slow fails."""
    for name in SLOW:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not there')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    def start(name, *arguments):
        argv = [sys.executable, *shlex.split(start_of(name))[1:], *arguments]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=False)

    return start


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_what_is_wrong_with_flags_wait_for_nothing_slow(name, without_what_is_slow):
    done = without_what_is_slow(name, "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"usage: {start_of(name)} ")
    done = without_what_is_slow(name, *NEEDED.get(name, []), "--no_such_flag=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no setting --no_such_flag; see --help\n"


@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_an_accelerator_that_is_not_there_is_refused_with_the_line_that_installs_it(accelerator, tmp_path):
    """Skipped by nothing: on a machine that has the accelerator the run starts, and fails on the data instead."""
    done = command("train.py", f"--accelerator={accelerator}", "--dataset=none", cwd=tmp_path)
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert f"accelerator={accelerator}" in done.err or "none" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_stream_cannot_show_ends_no_command(monkeypatch, encoding):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)

    def speaks(argv):
        print("na\N{REPLACEMENT CHARACTER}ve", flush=True)
        raise UserError("l\N{GREEK SMALL LETTER ALPHA}uft\udcff is no file; name one")

    assert entry.run(speaks) == 2
    for stream, begin in zip(streams, ("na", "error: l"), strict=True):
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding).startswith(begin)


@pytest.mark.parametrize(("name", "value"), [("PYTHONIOENCODING", "ascii"), ("LC_ALL", "C")])
def test_a_run_and_its_texts_survive_an_output_that_cannot_show_them(tmp_path, monkeypatch, name, value):
    data_dir = prepare_tiny(tmp_path, "na\u00efve \u03a9mega, l\u00e4uft: \n")
    monkeypatch.setenv(name, value)
    out_dir = tmp_path / "l\u00e4uft \u03a9"
    done = command("train.py", *TINY, "--max_iters=1", f"--data_dir={data_dir}", f"--out_dir={out_dir}")
    assert done.status == 0, done.err
    done = command("sample.py", "--start=\u00ef", "--num_samples=1", "--max_new_tokens=9", f"--out_dir={out_dir}")
    assert done.status == 0, done.err
