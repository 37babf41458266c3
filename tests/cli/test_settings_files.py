"""nanoGPT's settings files are read without executing anything, and the lines of its README work as they stand."""

import re

import pytest

from nanogpt_jax.cli.settings import chosen
from nanogpt_jax.cli.settings_files import read_settings_file
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run.presets import PRESETS
from tests.helpers.commands import command, metrics_of

LIKE_NANOGPTS = '''\
"""Training in the small; the launcher is python."""
import time

wandb_log = False # no need
wandb_project = 'tiny'
wandb_run_name='tiny-' + str(time.time())

dataset = 'shakespeare_char'
gradient_accumulation_steps = 2 * 3
batch_size = 4
learning_rate = 1e-2 # can afford it
min_lr = 0.5 * 1e-3 * 2
max_iters = 6
beta2 = 0.99

out_dir = 'out-tiny'
device = 'cpu'  # run on cpu only
compile = False # do not torch compile the model
'''


def refusal_of(path):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        read_settings_file(path)
    return str(error.value)


def test_lines_of_literals_and_products_are_read(tmp_path):
    path = tmp_path / "train_tiny.py"
    path.write_text(LIKE_NANOGPTS)
    base, explicit, notes = chosen({"preset_or_file": str(path), "max_iters": 7})
    settings = Settings(**base, **explicit)
    expected = Settings(
        dataset="shakespeare_char", gradient_accumulation_steps=6, batch_size=4, learning_rate=1e-2, min_lr=1e-3,
        max_iters=7, beta2=0.99, out_dir="out-tiny", accelerator="cpu", wandb_project="tiny",
    )  # fmt: skip
    assert settings == expected
    assert len(notes) == 2 and "line 6: wandb_run_name = 'tiny-' + str(time.time()) is not executed" in notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n_layer = 2 + 3", "line 2: n_layer = 2 + 3 is code, which is never executed here; write the value itself"),
        ("n_layer = n_head", "line 2: n_layer = n_head is code"),
        ("out_dir = 'a' * 9", "line 2: out_dir = 'a' * 9 is code"),
        ("max_iters = 10**9", "line 2: max_iters = 10**9 is code"),
        ("max_iters = 0x" + "f" * 9000, "line 2: max_iters = "),
        ("dtype = 'bfloat16' if torch.cuda.is_available() else 'float16'", "line 2: dtype = "),
        ("n_layer += 1", "line 2 is code, which is never executed here; write lines of name = value"),
        ("n_layer = n_head = 4", "line 2 is code"),
        ("if True: n_layer = 3", "line 2 is code"),
        ("print('hello')", "line 2 is code"),
        ("n_layer = ", "line 2 is not Python"),
        ("n_layer = 4\0", "is not Python"),
        ("n_layer = " + "(" * 9000, "is not Python"),
        ("n_layer = " + "1*" * 9000 + "1", ""),
        ("n_heads = 4", "line 2: there is no setting n_heads; did you mean n_head?"),
    ],
    ids=lambda value: value[:24],
)
def test_anything_else_is_refused_by_its_line(tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(f"batch_size = 4\n{line}\n")
    assert re.match(rf"settings file {re.escape(str(path))}\b.*", refusal_of(path))
    assert message in refusal_of(path)


def test_a_file_that_is_no_text_or_no_file_is_named(tmp_path):
    (tmp_path / "mine.py").write_bytes(b"out_dir = '\xff'\n")
    assert "is not UTF-8 text" in refusal_of(tmp_path / "mine.py")
    (tmp_path / "folder.py").mkdir()
    assert "cannot be read (Is a directory)" in refusal_of(tmp_path / "folder.py")
    assert "cannot be read (No such file or directory)" in refusal_of(tmp_path / "eval_gpt5.py")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("train_shakespeare_char", PRESETS["shakespeare_char"]),
        ("train_gpt2", PRESETS["gpt2"]),
        ("finetune_shakespeare", PRESETS["finetune_shakespeare"]),
        ("eval_gpt2_xl", {"init_from": "gpt2-xl", "eval_only": True, "batch_size": 8, "eval_iters": 500}),
    ],
)
def test_nanogpts_own_files_need_not_be_there(tmp_path, monkeypatch, name, settings):
    monkeypatch.chdir(tmp_path)
    base, explicit, notes = chosen({"preset_or_file": f"config/{name}.py"})
    assert {**base, **explicit} == dict(settings)
    assert notes[0].startswith(f"config/{name}.py is not here: taking ")


def test_compile_in_a_toml_file_is_nanogpts_flag(tmp_path):
    (tmp_path / "mine.toml").write_text('preset = "gpt_dev"\ncompile = false\ndevice = "cpu"\n')
    _, explicit, notes = chosen({"preset_or_file": str(tmp_path / "mine.toml")})
    assert explicit == {"accelerator": "cpu"} and notes == ["compile=False has no effect: JAX always compiles"]


def test_the_line_of_nanogpts_readme_trains(data_dir, tmp_path):
    (tmp_path / "data").symlink_to(data_dir)
    line = (
        "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
        "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
        "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
    )
    shorter = ("--max_iters=2", "--lr_decay_iters=2", "--eval_iters=1")
    done = command("train.py", *line.split(), *shorter, cwd=tmp_path)
    assert done.status == 0, done.err
    assert "804,096 parameters; 768 tokens per iteration" in done.out
    assert "warning: lr_decay_iters=2 is not larger than warmup_iters=100" in done.out
    rates = [
        entry["learning_rate"] for entry in metrics_of(tmp_path / "out-shakespeare-char") if entry["split"] == "train"
    ]
    assert rates == pytest.approx([1e-3 / 101, 2e-3 / 101], rel=0, abs=1e-9)
