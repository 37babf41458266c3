"""LoRA trained here and by PEFT, over one base and from one A and B: the same gradients, and the same matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.lora import Base, make_base
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import IGNORED, Batch, init_state, loss_fn, make_train_step
from nanogpt_jax.weights import hf_format
from nanogpt_jax.weights.peft_format import delta_of_peft, modules_of, peft_tensors_of, read_peft
from tests.helpers.adapters import MODELS, lora_config, on_device, their_base, with_random_matrices
from tests.helpers.foreign import VOCABULARY, random_params

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # which PEFT then mends itself


class Twins(NamedTuple):
    """One LoRA over one base in both programs, in float32 and without dropout: equal A and B to begin with."""

    theirs: Any
    model: GPT
    base: Base
    delta: Any

    def batch(self, seed: int) -> Batch:
        """Rows of random tokens; from a few of them nothing is to be learnt."""
        draw = np.random.default_rng(seed)
        rows = draw.integers(VOCABULARY, size=(8, 9)).astype(np.int32)
        return Batch(rows[:, :-1], np.where(draw.random((8, 8)) < 0.2, IGNORED, rows[:, 1:]))

    def backward(self, batch: Batch) -> float:
        """Their loss, once its gradients are in their parameters."""
        self.theirs.zero_grad()
        logits = self.theirs(torch.tensor(batch.tokens)).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(batch.targets).flatten().long(), ignore_index=-1)
        loss.backward()
        return loss.item()

    def in_theirs(self, of: Any) -> dict[str, np.ndarray]:
        """What `of` takes of each of their A and B, under the names of files."""
        named = self.theirs.named_parameters()
        return {n.replace(".default", ""): of(p).detach().numpy().copy() for n, p in named if p.requires_grad}

    def largest_error(self, ours: Any, of: Any) -> float:
        """The largest relative error of a whole matrix: the norm of the difference over the norm of theirs."""
        there = self.in_theirs(of)
        here = peft_tensors_of(ours, self.model.config)
        assert here.keys() == there.keys()
        zero = {name for name, x in there.items() if not x.any()}
        assert not any(here[name].any() for name in zero)
        errors = [np.linalg.norm(here[n] - x) / np.linalg.norm(x) for n, x in there.items() if n not in zero]
        return float(max(errors))


@pytest.fixture(params=["gpt2", "llama"])
def twins(request: Any, tmp_path: Path) -> Twins:
    config = MODELS[request.param]
    base = their_base(config, random_params(config), tmp_path / "base")
    modules = modules_of("attn,mlp", config)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, lora_config(r=4, lora_alpha=16, target_modules=modules))
    theirs.save_pretrained(tmp_path / "adapter")
    delta = on_device(read_peft(tmp_path / "adapter", config).delta)
    params = hf_format.read_hf_params(tmp_path / "base", config)
    return Twins(theirs, GPT(config), make_base(on_device(params), "float32", 16 / 4), delta)


@pytest.mark.parametrize("at", ["the start", "random matrices"])
def test_gradients_are_those_of_peft(twins: Twins, at: str) -> None:
    delta = twins.delta
    if at == "random matrices":  # at the start B is zero, and so is the gradient of A
        with_random_matrices(twins.theirs)
        config = twins.model.config
        delta = on_device(delta_of_peft(twins.in_theirs(lambda p: p), config, 4, "attn,mlp"))
    batch = twins.batch(0)
    loss, grads = jax.jit(jax.value_and_grad(lambda d: loss_fn(twins.model, d, batch, None, twins.base)))(delta)
    assert float(loss) == pytest.approx(twins.backward(batch), abs=1e-5)
    assert twins.largest_error(grads, lambda p: p.grad) < 1e-4


def test_fifty_updates_are_those_of_peft(twins: Twins) -> None:
    """A and B after 1 and after 50 updates of AdamW, each matrix as a whole to 1e-4 of its norm.

    Betas, epsilon (1e-8), rate and decay are the same, and nothing is clipped. Adam divides a gradient by its size and
    epsilon, so that of a gradient near epsilon rounding is a part in a thousand of the step: GPT-2's least gradients of
    B for keys are 2e-8 with alpha / r = 1.5 and batches half as large, and that matrix is 5e-5 off after the first
    update. With alpha / r = 4 it is 2e-5, which 50 updates bring down to 1e-6. The first gradients of A, exact zeros,
    do no harm: both sides divide zero by epsilon, and decay alone changes A.
    """
    settings = Settings(learning_rate=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.99, grad_clip=0.0, decay_lr=False)
    tx = make_optimizer(settings)
    step = make_train_step(twins.model, tx)
    state = init_state(jax.tree.map(jnp.copy, twins.delta), tx, 0, twins.base)
    trained = [p for p in twins.theirs.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    start = twins.in_theirs(lambda p: p)
    errors = {}
    for update in range(1, 51):
        batch = twins.batch(update)
        state, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(twins.backward(batch), abs=1e-5)
        adamw.step()
        errors[update] = twins.largest_error(state.params, lambda p: p)
    print(f"largest relative error of a matrix: {errors[1]:.1e} after 1 update, {errors[50]:.1e} after 50")
    assert max(errors.values()) < 1e-4
    moved = [np.linalg.norm(x - start[name]) for name, x in twins.in_theirs(lambda p: p).items()]
    assert min(moved) > 0.01
