"""nanoGPT's checkpoints: training goes on from them, there and back, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from nanogpt_jax import convert
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.cli.texts import sample_text
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.run import loop
from nanogpt_jax.weights import loading
from nanogpt_jax.weights.nanogpt_format import NanoGPTCheckpoint, moments_of, with_moments
from nanogpt_jax.weights.state_dicts import HEAD, TABLE, state_dict_of
from tests.helpers.foreign import NANOGPT, VOCABULARY, Lab, logits_of, nothing_written, random_params
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits, state_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class Evil:
    """An object whose pickle would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class TestNanoGPT:
    def test_a_checkpoint_is_nanogpts(self, lab: Lab, ckpt: Path) -> None:
        document = torch.load(ckpt, weights_only=True)
        theirs = {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"}
        assert set(document) == {*theirs, "tokenizer"} and document["tokenizer"]["type"] == "char"
        assert document["iter_num"] == 3 and document["best_val_loss"] < 4
        assert document["config"]["dataset"] == "words"
        assert set(document["model_args"]) == {f.name for f in dataclasses.fields(GPTConfig)[:7]}
        assert document["model"][HEAD].data_ptr() == document["model"][TABLE].data_ptr()
        decayed, others = document["optimizer"]["param_groups"]
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0) and decayed["betas"] == (0.9, 0.98)
        shapes = [tuple(document["optimizer"]["state"][i]["exp_avg"].shape) for i in decayed["params"]]
        assert shapes == [tuple(t.shape) for name, t in document["model"].items() if t.ndim == 2 and name != HEAD]

    def test_there_and_back_training_stands_where_it_stood(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        assert convert.main([str(ckpt), str(tmp_path / "run"), f"--data_dir={lab.data_dir}"]) == 0
        assert_same_bits(state_of(tmp_path / "run"), state_of(lab.run))
        settings = loading.stored_settings(loading.open_run(tmp_path / "run").run)
        assert dataclasses.replace(settings, out_dir=lab.settings.out_dir) == lab.settings

    def test_training_goes_on_from_a_converted_run(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        runs = [tmp_path / "converted", tmp_path / "copied"]
        convert.main([str(ckpt), str(runs[0]), f"--data_dir={lab.data_dir}"])
        shutil.copytree(lab.run, runs[1])
        losses = [loop.train(Settings(init_from="resume", out_dir=str(run)), {"max_iters": 5}) for run in runs]
        assert losses[0] == losses[1]
        assert_same_bits(*map(state_of, runs))

    def test_pytorchs_adamw_goes_on_where_ours_stood(self, lab: Lab, ckpt: Path) -> None:
        document = torch.load(ckpt, weights_only=True)
        names = [name for name in document["model"] if name != HEAD]
        matrices, vectors = ([n for n in names if (document["model"][n].ndim >= 2) is two] for two in (True, False))
        groups = [{"params": [document["model"][name] for name in group]} for group in (matrices, vectors)]
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        optimizer.load_state_dict(document["optimizer"])
        state, gradient = state_of(lab.run), random_params(NANOGPT, seed=1)
        tx = make_optimizer(dataclasses.replace(lab.settings, grad_clip=0.0, decay_lr=False))
        # Without a schedule the chain has one counter less; AdamW's moments fit all the same.
        opt_state = with_moments(tx.init(state.params), moments_of(state.opt_state), step=3)
        updates, _ = jax.jit(tx.update)(gradient, opt_state, state.params)
        for name, value in state_dict_of(gradient, NANOGPT, "nanogpt").items():
            document["model"][name].grad = torch.tensor(value)
        optimizer.step()
        ours = state_dict_of(jax.jit(optax.apply_updates)(state.params, updates), NANOGPT, "nanogpt")
        for name in names:
            np.testing.assert_allclose(ours[name], document["model"][name].numpy(), atol=1e-6)

    def test_a_checkpoint_of_compiled_nanogpt_without_an_optimizer(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        model = {f"_orig_mod.{name}": tensor for name, tensor in torch.load(ckpt)["model"].items()}
        args = {name: value for name, value in torch.load(ckpt)["model_args"].items() if name != "dropout"}
        torch.save({"model": model, "model_args": args}, tmp_path / "old.pt")
        assert_same_bits(NanoGPTCheckpoint(tmp_path / "old.pt").params(), state_of(lab.run).params)
        tokenizer = f"--tokenizer={lab.data_dir / 'words' / 'meta.json'}"
        message = refusal(convert.main, [str(tmp_path / "old.pt"), str(tmp_path / "run")])
        assert f"does not say what its {VOCABULARY} tokens are" in message and "--tokenizer=PATH" in message
        assert convert.main([str(tmp_path / "old.pt"), str(tmp_path / "run"), tokenizer]) == 0
        state = state_of(tmp_path / "run")
        assert int(state.step) == 0 and moments_of(state.opt_state).count == 0

    def test_it_evaluates_to_the_loss_that_pytorch_gives(self, lab: Lab, ckpt: Path, tmp_path: Path) -> None:
        convert.main([str(ckpt), str(tmp_path / "hf"), "--to=hf"])
        model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
        tokens = np.fromfile(lab.data_dir / "words" / "val.bin", np.uint16).astype(np.int64)
        total, size = 0.0, NANOGPT.block_size
        for start in range(0, len(tokens) - 1, size):
            window = torch.tensor(tokens[start : start + size + 1])
            logits = torch.tensor(logits_of(model, window[None, :-1].numpy()))[0]
            total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        for source in (ckpt, tmp_path / "hf", lab.run):
            settings = dataclasses.replace(lab.settings, init_from=str(source), eval_only=True)
            assert loop.train(settings) == pytest.approx(total / (len(tokens) - 1), abs=1e-4)

    def test_sampling_takes_the_tokenizer_of_its_data_set(
        self, lab: Lab, ckpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(lab.data_dir.parent)
        for source in (ckpt, lab.run):
            sample_text(SampleSettings(init_from=str(source), start="To", num_samples=1, max_new_tokens=5))
        one, other = capsys.readouterr().out.split("---------------\n")[:2]
        assert one == other and one.startswith("To") and len(one) == 8

    def test_code_in_a_checkpoint_is_named_and_not_run(self, theirs: Any, ckpt: Path, tmp_path: Path) -> None:
        evil, trap = Evil(tmp_path / "trap"), tmp_path / "evil"
        trap.mkdir()
        torch.save({"model": {"a": evil}, "model_args": {}}, trap / "zip.pt")
        torch.save({"model": {"a": evil}}, trap / "legacy.pt", _use_new_zipfile_serialization=False)
        (trap / "raw.pt").write_bytes(pickle.dumps({"model": evil}))
        shutil.copy(theirs[1] / "config.json", trap)
        torch.save({"a": evil}, trap / "pytorch_model.bin")
        with nothing_written(tmp_path):
            for source in (trap / "zip.pt", trap / "legacy.pt", trap / "raw.pt", trap):
                message = refusal(convert.main, [str(source), str(tmp_path / "out")])
                assert "posix.mkdir" in message and str(source) in message

    @pytest.mark.parametrize("keep", [0, 5, 100, -10])
    def test_a_truncated_checkpoint_is_named(self, ckpt: Path, keep: int, tmp_path: Path) -> None:
        (tmp_path / "cut.pt").write_bytes(ckpt.read_bytes()[:keep])
        with nothing_written(tmp_path):
            assert "cut.pt" in refusal(convert.main, [str(tmp_path / "cut.pt"), str(tmp_path / "out")])

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("model_args", lambda a: {**a, "n_layer": 3}, "h.2.ln_1.weight has shape none at all where the model has"),
            ("model_args", lambda a: {**a, "n_layer": 1}, "h.1.ln_1.weight has shape (16,) where the model has none"),
            ("model_args", lambda a: {**a, "block_size": 9}, "wpe.weight has shape (8, 16) where the model has (9,"),
            ("model_args", lambda a: {**a, "flash": 1}, "model_args has 'flash'"),
            ("model", lambda m: [], "is not a nanoGPT checkpoint (it has no 'model')"),
            ("model", lambda m: {**m, TABLE: 3}, "is damaged, or of another program"),
            ("config", lambda c: {**c, "batch_size": -1}, "batch_size=-1 is smaller than 1"),
            ("config", lambda c: [], "is damaged, or of another program"),
            ("iter_num", lambda i: "3", "iter_num='3' is a str"),
            ("optimizer", lambda o: {**o, "state": {0: o["state"][0]}}, "optimizer is damaged, or of another program"),
            ("optimizer", lambda o: {**o, "param_groups": o["param_groups"][:1]}, "moments of 10 tensors where the"),
            ("optimizer", lambda o: {**o, "state": o["state"] | {0: o["state"][1]}}, "wte.weight has shape (8, 16)"),
        ],
    )  # fmt: skip
    def test_a_checkpoint_that_does_not_fit_is_refused(
        self, lab: Lab, ckpt: Path, part: str, change: Any, message: str, tmp_path: Path
    ) -> None:
        document = torch.load(ckpt)
        torch.save({**document, part: change(document[part])}, tmp_path / "odd.pt")
        with nothing_written(tmp_path):
            argv = [str(tmp_path / "odd.pt"), str(tmp_path / "run"), f"--data_dir={lab.data_dir}"]
            assert message in refusal(convert.main, argv)

    def test_without_pytorch_a_line_says_what_to_install(self, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        assert "pip install -e '.[torch]'" in refusal(loading.open_weights, str(ckpt))
