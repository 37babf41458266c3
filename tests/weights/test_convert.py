"""The command that converts, and starting from weights of another shape or data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_jax import convert
from nanogpt_jax.core.model import GPT
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.run import loop
from nanogpt_jax.weights import loading
from nanogpt_jax.weights.nanogpt_format import NanoGPTCheckpoint
from tests.helpers.foreign import NANOGPT, TEXT, VOCABULARY, Lab, nothing_written
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits, state_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class TestConvert:
    def test_what_exists_is_replaced_only_when_asked(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        argv = [str(lab.run), str(out)]
        assert convert.main(argv) == 0
        assert "out exists; add --overwrite" in refusal(convert.main, argv)
        assert convert.main([str(ckpt), str(out), "--overwrite", "--to=run", f"--data_dir={lab.data_dir}"]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "config.json"]
        assert list(tmp_path.iterdir()) == [out]
        (out / "notes.txt").touch()
        assert "holds notes.txt, which no conversion wrote" in refusal(convert.main, [*argv, "--overwrite"])
        assert "is a folder" in refusal(convert.main, [argv[0], str(tmp_path / "x.pt"), "--to=run"])
        (tmp_path / "ckpt.pt").write_text("old")
        assert convert.main([str(lab.run), str(tmp_path / "ckpt.pt"), "--overwrite"]) == 0
        assert NanoGPTCheckpoint(tmp_path / "ckpt.pt").step == 3

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["missing", "x"], "missing holds no run"),
            (["RUN", "x", "--to=pt"], "to='pt' is not one of run, hf"),
            (["RUN", "x", "--tokenizer=y/meta.json"], "y is not a prepared data set"),
            (["HF", "x.pt"], "activation=gelu_new has no equal in nanoGPT"),
            (["HF", "x", "--tokenizer=nowhere/meta.json"], "nowhere is not a prepared data set"),
            (["RUN", "x", "--overwrote"], "there is no setting --overwrote; did you mean --overwrite?"),
            (["RUN"], "DST"),
        ],
    )  # fmt: skip
    def test_wrong_use_is_one_line(
        self, lab: Lab, theirs: Any, argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        named = {"RUN": str(lab.run), "HF": str(theirs[1])}
        with nothing_written(tmp_path):
            assert message in refusal(convert.main, [named.get(argument, argument) for argument in argv])

    def test_a_bigram_stays_at_home(self, lab: Lab, tmp_path: Path) -> None:
        loop.train(dataclasses.replace(lab.settings, model="bigram", out_dir=str(tmp_path / "run"), max_iters=1))
        assert "model=bigram" in refusal(convert.main, [str(tmp_path / "run"), str(tmp_path / "hf")])
        assert "model=bigram" in refusal(convert.main, [str(tmp_path / "run"), str(tmp_path / "x.pt")])


class TestStartingFromWeights:
    def test_a_smaller_block_size_crops_the_positions(self, lab: Lab, ckpt: Path) -> None:
        table = state_of(lab.run).params["wpe"]["embedding"]
        cropped = GPT(dataclasses.replace(NANOGPT, block_size=5))
        for source in (lab.run, ckpt):
            params = loading.open_weights(str(source)).load(cropped)
            np.testing.assert_array_equal(params["wpe"]["embedding"], table[:5])
        settings = dataclasses.replace(lab.settings, init_from=str(ckpt), block_size=5, eval_only=True)
        assert loop.train(settings, {"block_size": 5}) != loop.train(settings)

    def test_other_shapes_that_are_asked_for_must_be_those_of_the_weights(self, lab: Lab) -> None:
        settings = dataclasses.replace(lab.settings, init_from=str(lab.run), block_size=9, n_layer=3, eval_only=True)
        message = refusal(loop.train, settings, {"block_size": 9})
        assert "block_size=9 does not fit" in message and "block_size=8; leave it out, or smaller" in message
        assert "n_layer=3 does not fit" in refusal(loop.train, settings, {"n_layer": 3})
        assert loop.train(settings) < 4  # a preset gives way

    def test_a_data_set_must_fit_the_weights(self, lab: Lab, theirs: Any, capsys: Any, tmp_path: Path) -> None:
        (tmp_path / "text.txt").write_text(TEXT + "§")
        prepare_text([tmp_path / "text.txt"], tmp_path / "data" / "words")
        settings = dataclasses.replace(lab.settings, init_from=str(theirs[1]), eval_only=True)
        loop.train(settings)
        assert f"does not say what its tokens are: taking them for those of {lab.data_dir}" in capsys.readouterr().out
        other = dataclasses.replace(settings, data_dir=str(tmp_path / "data"))
        assert f"has {VOCABULARY + 1} tokens where the weights in" in refusal(loop.train, other)
        assert "another tokenizer" in refusal(loop.train, dataclasses.replace(other, init_from=str(lab.run)))


def test_a_run_with_muon_goes_on_to_the_same_bits_and_has_no_equal_in_nanogpt(lab: Lab, tmp_path: Path) -> None:
    whole, cut = (dataclasses.replace(lab.settings, optimizer="muon", out_dir=str(tmp_path / name)) for name in "ab")
    loop.train(whole)
    loop.train(dataclasses.replace(cut, max_iters=2))
    loop.train(dataclasses.replace(cut, init_from="resume"), {"max_iters": 3})
    assert_same_bits(state_of(tmp_path / "b"), state_of(tmp_path / "a"))
    with nothing_written(tmp_path):
        said = refusal(convert.main, [str(tmp_path / "a"), str(tmp_path / "ckpt.pt")])
    assert "optimizer=muon in" in said and "has no equal in nanoGPT, which has AdamW alone; convert to hf" in said
