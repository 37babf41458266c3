"""The lens as a command, and the numbers it lays into a page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanogpt_jax.cli import sample, train
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer
from nanogpt_jax.lens import command as lens
from nanogpt_jax.lens import reading
from nanogpt_jax.lens.page import document, packed
from nanogpt_jax.lens.settings import LensSettings
from tests.helpers.commands import command
from tests.helpers.lens import data_of, findings
from tests.helpers.tiny import TINY, prepare_tiny


def test_packed_attention_is_right_to_a_255th():
    attention = np.asarray(
        jax.nn.softmax(jnp.where(np.tri(9), 9 * jax.random.normal(jax.random.key(0), (2, 3, 9, 9)), -1e9))
    )
    bytes_ = np.frombuffer(packed(attention), np.uint8).reshape(2, 3, 45)
    unpacked = np.zeros_like(attention)
    unpacked[..., *np.tril_indices(9)] = (bytes_ / 255) ** 2
    assert np.abs(unpacked - attention).max() <= 1 / 255


def test_tokens_that_are_parts_of_characters_are_shown_as_bytes():
    tokenizer = BPETokenizer(["a b"])
    text = "ab é<|endoftext|>"
    # A table that is padded, as nanoGPT pads GPT-2's: tokens that mean nothing are no candidates.
    found = document(findings(tokenizer.encode(text), 2, 300, tokenizer), tokenizer)
    assert [found["pieces"][token] for token in found["tokens"]] == ["ab", " ", [0xC3], [0xA9], "<|endoftext|>"]
    assert found["unit"] == "token" and found["vocab_size"] == 258
    assert max(map(max, found["candidates"])) < 258


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that has hardly begun."""
    folder = tmp_path_factory.mktemp("lens")
    flags = (f"--data_dir={prepare_tiny(folder)}", f"--out_dir={folder / 'out'}", "--max_iters=1")
    assert train.main([*TINY, *flags, "--block_size=32"]) == 0
    return folder / "out"


def test_the_command_reads_what_sample_py_writes(run, tmp_path, capsys):
    flags = [f"--out_dir={run}", "--start=to be", "--seed=3", "--accelerator=cpu"]
    html = tmp_path / "new" / "lens.html"
    capsys.readouterr()
    assert lens.main([*flags, f"--html={html}"]) == 0
    assert capsys.readouterr().out == f"{html}: 0.0 MB; open it in a browser\n"
    sample.main([*flags, "--num_samples=1", "--max_new_tokens=27"])
    found = data_of(html.read_text(encoding="utf-8"))
    assert "".join(found["pieces"][str(token)] for token in found["tokens"]) + "\n" == capsys.readouterr().out[:33]
    assert (found["given"], len(found["tokens"]), len(found["layers"]), found["heads"]) == (5, 32, 2, 2)


def test_a_text_can_be_read_as_it_is(run):
    found = data_of(reading.rendered(LensSettings(out_dir=str(run), start="not", max_new_tokens=0)))
    assert (found["given"], len(found["losses"])) == (3, 2)


def test_a_bigram_has_predictions_and_no_layers(tmp_path):
    flags = (f"--data_dir={prepare_tiny(tmp_path)}", f"--out_dir={tmp_path / 'out'}", "--max_iters=1", "--eval_iters=1")
    assert train.main(["bigram", "--dataset=tiny", *flags]) == 0
    found = data_of(reading.rendered(LensSettings(out_dir=str(tmp_path / "out"), start="to be")))
    assert (len(found["tokens"]), found["layers"], found["attention"]) == (200, [], {"layers": 0, "bytes": ""})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start="], "the prompt is empty and there is nothing to read; give at least one token"),
        ([f"--start={'to be ' * 6}"], "start has 36 tokens and the model reads block_size=32 at once; shorten it by 4"),
        (
            ["--start=to be", "--max_new_tokens=500"],
            "max_new_tokens=500 after the 5 of start are more than the block_size=32 that the model reads at once; "
            "choose at most 27",
        ),
        (["--max_new_tokens=-1"], "max_new_tokens=-1 is smaller than 0; choose at least 0"),
        (["--start=Z"], "the character 'Z' (U+005A) at position 0 is not among"),
        (["--start=to", "--html=."], "html='.' is a folder; name a file"),
        (["--start=to", "--html=/dev/null/lens.html"], "html=/dev/null/lens.html cannot be written ("),
        (["--temperature=-1"], "temperature=-1.0 is not a number of at least 0"),
        (["--htlm=x"], "there is no setting --htlm; did you mean --html?"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        lens.main([f"--out_dir={run}", "--accelerator=cpu", *flags])
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_the_process_with_status_2(tmp_path):
    done = command("nanogpt_jax/lens/__main__.py", "--out_dir=nowhere", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: nowhere holds no run") and done.err.count("\n") == 1


def test_damaged_weights_are_named():
    model = GPT(GPTConfig(block_size=8, vocab_size=3, n_layer=1, n_head=1, n_embd=8))
    spoilt = jax.tree.map(lambda p: p * jnp.nan, init_params(model, 0))
    with pytest.raises(UserError, match="not finite numbers"):
        reading.findings(model, spoilt, np.arange(3), 1, CharTokenizer.from_text("a"))
