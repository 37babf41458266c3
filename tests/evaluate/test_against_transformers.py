"""Every score beside a plain loop over transformers' GPT-2: one text at a time, nothing padded, nothing batched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from nanogpt_jax.data.tokenizer import BPETokenizer
from nanogpt_jax.evaluate import command as evaluate
from nanogpt_jax.weights.tokenizer_files import write_tokenizer
from tests.helpers import items

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BLOCK = 40
PADDING = 7  # rows of the table that no token has


class Reference(NamedTuple):
    folder: Path
    model: Any
    tokenizer: BPETokenizer

    def log_probs(self, ids: list[int]) -> np.ndarray:
        """Of every token that may come after each of `ids`: (T, V)."""
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].double()
        return torch.log_softmax(logits, dim=-1).numpy()

    def continuation(self, context: str, target: str, end: tuple[int, ...] = ()) -> tuple[list[float], bool]:
        """The log-probability of each token of the target, and whether greedy text would be the same."""
        before, after = (self.tokenizer.encode_ordinary(part).tolist() for part in (context, target))
        ids = [*before, *after, *end]
        rows = self.log_probs(ids[-1 - BLOCK : -1])[len(before) - len(ids) :]
        scores = [float(row[token]) for row, token in zip(rows, ids[len(before) :], strict=True)]
        greedy = [int(row.argmax()) for row in rows] == ids[len(before) :]
        return scores, greedy


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = BPETokenizer.train([items.text(0, 60)], 330)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size + PADDING, n_positions=BLOCK, n_embd=32, n_layer=2, n_head=4,
        initializer_range=0.25, bos_token_id=tokenizer.eot_token, eos_token_id=tokenizer.eot_token,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer, BLOCK)
    return Reference(folder, model, tokenizer)


def scored(reference: Reference, tmp_path: Path, *flags: str) -> dict[str, Any]:
    """What the command writes of the model on one file."""
    path = tmp_path / "scores.json"
    argv = [str(reference.folder), *flags, f"--json={path}", "--accelerator=cpu", "--batch_size=7"]
    assert evaluate.main(argv) == 0
    [result] = json.loads(path.read_text())["results"]
    [model] = result["models"]
    return model


def test_hellaswag_is_scored_choice_by_choice(reference, tmp_path):
    drawn = items.hellaswag(1, 200, 30)
    drawn[0]["label"] = str(drawn[0]["label"])  # as some copies have it
    found = scored(reference, tmp_path, f"--hellaswag={items.write_lines(tmp_path / 'hellaswag.jsonl', drawn)}")
    right, right_norm, cut = [], [], 0
    for item, ours in zip(drawn, found["items"], strict=True):
        sums = [sum(reference.continuation(item["ctx"], f" {ending}")[0]) for ending in item["endings"]]
        np.testing.assert_allclose(ours["log_probs"], sums, atol=1e-4, rtol=0)
        per_byte = [score / len(ending.encode()) for score, ending in zip(sums, item["endings"], strict=True)]
        assert (ours["chosen"], ours["chosen_norm"]) == (int(np.argmax(sums)), int(np.argmax(per_byte)))
        right.append(int(np.argmax(sums)) == int(item["label"]))
        right_norm.append(int(np.argmax(per_byte)) == int(item["label"]))
        size = max(len(reference.tokenizer.encode_ordinary(f" {ending}")) for ending in item["endings"])
        cut += len(reference.tokenizer.encode_ordinary(item["ctx"])) + size > BLOCK + 1
    for name, values in (("acc", right), ("acc_norm", right_norm)):
        figure = found["figures"][name]
        assert figure["value"] == pytest.approx(np.mean(values))
        assert figure["error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(200))
    assert right != right_norm and 0 < cut < 200 and found["cut"] == cut


def test_lambada_is_scored_item_by_item(reference, tmp_path):
    drawn = items.lambada(2, 60, 25)
    # Last words that the model would say itself, so that some are exact.
    for item in drawn[:20]:
        ids = reference.tokenizer.encode_ordinary(item["text"]).tolist()[:20]
        for _ in range(12):
            ids.append(int(reference.log_probs(ids)[-1].argmax()))
            said = reference.tokenizer.decode(ids)
            context, _, word = said.rpartition(" ")
            if context and word and "�" not in said and reference.continuation(context, f" {word}")[1]:
                item["text"] = said
                break
    found = scored(reference, tmp_path, f"--lambada={items.write_lines(tmp_path / 'lambada.jsonl', drawn)}")
    sums, exact = [], []
    for item, ours in zip(drawn, found["items"], strict=True):
        context, _, word = item["text"].rpartition(" ")
        scores, greedy = reference.continuation(context, f" {word}")
        assert ours["log_prob"] == pytest.approx(sum(scores), abs=1e-4) and ours["exact"] == greedy
        assert ours["tokens"] == len(scores)
        sums.append(sum(scores))
        exact.append(greedy)
    figures = found["figures"]
    assert 0 < sum(exact) < 60 and figures["accuracy"]["value"] == pytest.approx(np.mean(exact))
    perplexity = math.exp(-np.mean(sums))
    assert figures["perplexity per word"]["value"] == pytest.approx(perplexity, rel=1e-5)
    by_delta = perplexity * np.std(sums, ddof=1) / math.sqrt(60)
    assert figures["perplexity per word"]["error"] == pytest.approx(by_delta, rel=1e-5)


def test_completions_end_with_the_end_of_text(reference, tmp_path):
    drawn = items.pairs(3, 40, 12)
    eot = reference.tokenizer.eot_token
    found = scored(reference, tmp_path, f"--pairs={items.write_lines(tmp_path / 'pairs.jsonl', drawn)}")
    sums, tokens = 0.0, 0
    for item, ours in zip(drawn, found["items"], strict=True):
        scores, greedy = reference.continuation(item["prompt"], item["completion"], (eot,))
        assert ours["log_prob"] == pytest.approx(sum(scores), abs=1e-4) and ours["exact"] == greedy
        sums, tokens = sums + sum(scores), tokens + len(scores)
    assert found["figures"]["perplexity per token"]["value"] == pytest.approx(math.exp(-sums / tokens), rel=1e-5)


@pytest.mark.parametrize("stride", [None, 1, 7, BLOCK])
def test_bits_per_byte_are_those_of_a_walk_from_token_to_token(reference, tmp_path, stride):
    play = items.text(4, 8)
    (tmp_path / "text.txt").write_text(play, encoding="utf-8")
    flags = [] if stride is None else [f"--stride={stride}"]
    found = scored(reference, tmp_path, f"--text={tmp_path / 'text.txt'}", *flags)
    stride = stride or BLOCK // 2
    ids = [reference.tokenizer.eot_token, *reference.tokenizer.encode_ordinary(play).tolist()]
    nats = 0.0
    for at in range(1, len(ids)):
        # The window that counts this token: the first one, or the one that ends at most `stride` tokens further on.
        end = BLOCK if at <= BLOCK else min(len(ids) - 1, BLOCK + -(-(at - BLOCK) // stride) * stride)
        row = reference.log_probs(ids[max(0, end - BLOCK) : at])[-1]
        nats -= float(row[ids[at]])
    figures = found["figures"]
    assert figures["bits per byte"]["value"] == pytest.approx(nats / math.log(2) / len(play.encode()), rel=1e-6)
    assert figures["perplexity per token"]["value"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    assert sum(part["tokens"] for part in found["items"]) == len(ids) - 1
    assert sum(part["bytes"] for part in found["items"]) == len(play.encode())
