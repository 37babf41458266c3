"""`sample.py --stop`: a text ends at the token that ends texts, the others go on, and the loop ends with the last."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.cli.texts import _SEPARATOR, sample_text
from nanogpt_jax.core import sampling
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from nanogpt_jax.weights.hf_format import write_hf
from nanogpt_jax.weights.loading import open_weights
from nanogpt_jax.weights.tokenizer_files import write_tokenizer
from tests.helpers.commands import Run
from tests.helpers.foreign import random_params
from tests.helpers.refusals import refusal

END, TURN, OTHER = "<|endoftext|>", "<|im_end|>", "<|image|>"
LONG = 200


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A model of eight tokens, two of which its files say a text ends with."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "a", "b", "c", "d"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([END, TURN, OTHER])
    folder = model(tmp_path, made.get_vocab_size())
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 5, 9999, None]}))
    return folder


def model(folder: Path, vocab_size: int) -> Path:
    """A random model that draws all its tokens about alike."""
    config = GPTConfig(block_size=16, vocab_size=vocab_size, n_layer=1, n_head=1, n_embd=4)
    write_hf(folder, config, random_params(config))
    return folder


def texts(capsys: Any, source: Path, **options: Any) -> list[str]:
    sample_text(SampleSettings(init_from=str(source), temperature=2.0, **options))
    *found, last = capsys.readouterr().out.split(f"\n{_SEPARATOR}\n")
    assert last == ""
    return found


def test_each_text_is_what_it_is_without_up_to_its_end(chat: Path, capsys: Any) -> None:
    for tokens, start in ((LONG, "a b"), (7, "a b"), (LONG, f"a {END} b")):
        options: dict[str, Any] = {"start": start, "num_samples": 6, "max_new_tokens": tokens}
        whole, ended = (texts(capsys, chat, stop=stop, **options) for stop in (False, True))
        first = [re.split(re.escape(END) + "|" + re.escape(TURN), text.removeprefix(start))[0] for text in whole]
        assert ended == [start + text for text in first]
        assert len(set(map(len, ended))) > 1 and (tokens < LONG or OTHER in "".join(ended))


def test_the_loop_ends_with_the_last_text(chat: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []

    def extend(*arguments: Any) -> Any:
        reached.append(arguments[-1])
        return plain(*arguments)

    plain = sampling.extend
    monkeypatch.setattr(sampling, "extend", extend)
    ended = texts(capsys, chat, start="a", stop=True, num_samples=3, max_new_tokens=LONG)
    longest = max(len(re.findall(r" \w|<\|\w+\|>|\[UNK\]", text)) for text in ended)
    assert longest < reached[-1] <= longest + 2 * 16 < LONG


def test_one_of_the_tokenizers_own_is_enough(chat: Path, capsys: Any) -> None:
    (chat / "generation_config.json").unlink()
    assert any(TURN in text for text in texts(capsys, chat, start="a", stop=True, max_new_tokens=LONG))
    own = BPETokenizer([])
    write_tokenizer(model(chat, own.vocab_size), own, 16)
    assert open_weights(str(chat)).stops == ()
    drawn = texts(capsys, chat, start="a", stop=True, num_samples=20, max_new_tokens=LONG, top_k=None)
    assert not any(END in text for text in drawn) and len(set(map(len, drawn))) > 1


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abcdefgh")])
def test_a_number_that_is_no_special_token_ends_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(model(tmp_path, tokenizer.vocab_size), tokenizer, 16)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert "has no token to stop at: none of the vocabulary's 8" in refusal(
        sample_text, SampleSettings(init_from=str(tmp_path), stop=True, start="a")
    )


def test_a_model_of_characters_has_no_such_token(trained: Run) -> None:
    said = refusal(sample_text, SampleSettings(out_dir=str(trained.out_dir), stop=True))
    assert said == (
        "stop=True has no token to stop at: none of the vocabulary's 65 ends a text; leave it out, and say how long a "
        "text is with --max_new_tokens"
    )
