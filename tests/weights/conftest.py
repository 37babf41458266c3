"""What is converted: a run, the same as a nanoGPT checkpoint, and a GPT-2 of Hugging Face's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanogpt_jax import convert
from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.run import loop
from nanogpt_jax.weights import hf_format
from tests.helpers.commands import once
from tests.helpers.foreign import GPT2, NANOGPT, TEXT, Lab


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random GPT-2 of Hugging Face's, saved by `save_pretrained` in a folder of its own."""
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_format.hf_config_of(GPT2))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return model, folder


def settings_in(folder: Path) -> Settings:
    return Settings(
        **vars(NANOGPT), dataset="words", data_dir=str(folder / "data"), out_dir=str(folder / "run"), batch_size=2,
        max_iters=3, gradient_accumulation_steps=1, eval_iters=1, eval_interval=2, warmup_iters=1, lr_decay_iters=9,
        beta2=0.98, learning_rate=1e-2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The run that is converted; tests read it alone."""

    def train(folder: Path) -> None:
        (folder / "text.txt").write_text(TEXT)
        prepare_text([folder / "text.txt"], folder / "data" / "words")
        loop.train(settings_in(folder))

    folder = once(tmp_path_factory, "lab", train)
    return Lab(folder / "data", folder / "run", settings_in(folder))


@pytest.fixture(scope="session")
def ckpt(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as a nanoGPT checkpoint."""

    def write(folder: Path) -> None:
        assert convert.main([str(lab.run), str(folder / "ckpt.pt")]) == 0

    return once(tmp_path_factory, "nanogpt", write) / "ckpt.pt"
