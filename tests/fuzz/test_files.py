"""Data, runs and weights whose files hold anything."""

import json
import zlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_jax import convert
from nanogpt_jax.cli import sample, train

from .drawn import bytes_changes, change, change_json, json_changes, odder
from .running import assert_trains_or_refuses, end_of, fuzz, only_changes


@fuzz(120)
@given(name=st.sampled_from(["train.bin", "val.bin", "meta.json"]), how=bytes_changes)
def test_token_files(name, how, laid_out):
    with laid_out("data") as folder:
        change(folder / "data" / "tiny" / name, how)
        assert_trains_or_refuses(folder)


@fuzz(120)
@given(changes=json_changes)
def test_tokenizer_json(changes, laid_out):
    with laid_out("data") as folder:
        change_json(folder / "data" / "tiny" / "meta.json", changes)
        assert_trains_or_refuses(folder)


def resume_or_sample(folder, resumes, flag):
    """Go on with a run, which may write into its folder, or sample from it, which may not."""
    flags = (f"--out_dir={folder / 'run'}", "--accelerator=cpu")
    if resumes:
        with only_changes(folder, folder / "run"):
            end_of(train.main, "--init_from=resume", *flags, f"--data_dir={folder / 'data'}", flag)
    else:
        with only_changes(folder):
            end_of(sample.main, *flags, "--num_samples=1", "--max_new_tokens=3", "--start=to")


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


@fuzz(100)
@given(
    which=st.lists(st.tuples(st.integers(0, 10**6), bytes_changes), min_size=1, max_size=4),
    resumes=st.booleans(),
)
def test_a_runs_folder(which, resumes, laid_out):
    with laid_out("data", "run") as folder:
        for number, how in which:
            files = files_in(folder / "run")
            change(files[number % len(files)], how)
        resume_or_sample(folder, resumes, "--max_iters=4")


@fuzz(80)
@given(changes=json_changes, resumes=st.booleans())
def test_a_runs_document(changes, resumes, laid_out):
    """Its sums made right again, as another program, or a hostile one, would."""
    with laid_out("data", "run") as folder:
        for files in (folder / "run" / "checkpoints").glob("*/files"):
            change_json(files / "run.json", changes)
            sums = json.loads((files / "sums.json").read_text())
            sums["run.json"] = f"{zlib.crc32((files / 'run.json').read_bytes()):08x}"
            (files / "sums.json").write_text(json.dumps(sums))
        resume_or_sample(folder, resumes, "--eval_only")


@fuzz(80)
@given(how=bytes_changes, samples=st.booleans())
def test_a_ckpt_pt(how, samples, laid_out):
    with laid_out("data", "ckpt.pt") as folder:
        change(folder / "ckpt.pt", how)
        weights = f"--init_from={folder / 'ckpt.pt'}"
        if samples:
            with only_changes(folder):
                end_of(sample.main, weights, "--num_samples=1", "--max_new_tokens=3", "--start=to", "--accelerator=cpu")
        else:
            assert_trains_or_refuses(folder, weights)


@fuzz(50)
@given(
    part=st.sampled_from(["model_args", "config", "iter_num", "best_val_loss", "optimizer", "model"]),
    value=odder,
    key=st.integers(0, 100),
)
def test_a_ckpt_pt_that_says_something_else(part, value, key, laid_out):
    with laid_out("data", "ckpt.pt") as folder:
        document = torch.load(folder / "ckpt.pt", weights_only=True)
        if isinstance(document[part], dict) and key % 4:
            keys = sorted(document[part])
            document[part][keys[key % len(keys)]] = value
        else:
            document[part] = value
        torch.save(document, folder / "ckpt.pt")
        with only_changes(folder, folder / "converted"):
            data = f"--data_dir={folder / 'data'}"
            end_of(
                convert.main, folder / "ckpt.pt", folder / "converted", "--tokenizer=" + str(folder / "data/tiny"), data
            )


@fuzz(70)
@given(name=st.sampled_from(["config.json", "model.safetensors"]), how=bytes_changes)
def test_a_hugging_face_folder(name, how, laid_out):
    with laid_out("data", "hf") as folder:
        change(folder / "hf" / name, how)
        assert_trains_or_refuses(folder, f"--init_from={folder / 'hf'}")


@fuzz(50)
@given(changes=json_changes)
def test_a_hugging_face_config(changes, laid_out):
    with laid_out("data", "hf") as folder:
        change_json(folder / "hf" / "config.json", changes)
        assert_trains_or_refuses(folder, f"--init_from={folder / 'hf'}")
