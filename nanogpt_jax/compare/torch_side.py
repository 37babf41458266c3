"""The PyTorch side of the comparison: a model of Hugging Face's or of a nanoGPT checkout, trained as nanoGPT trains.

This module imports PyTorch, so it is imported late and by `command.py` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_jax.compare.parity import micro_batches
from nanogpt_jax.compare.torch_training import adamw, hf_model, learning_rate, nanogpt_model
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Batch, Params
from nanogpt_jax.weights.hf_format import hf_config_of, hf_params_of, hf_state_dict_of
from nanogpt_jax.weights.nanogpt_format import nanogpt_model_args_of
from nanogpt_jax.weights.state_dicts import params_of, state_dict_of

StateDict = Mapping[str, np.ndarray]


@dataclass
class TorchSide:
    """A PyTorch model and its optimizer, as a `parity.Side`: numpy in and out, under this project's names.

    Attributes:
        name: of the program, for the table.
        module: the model.
        forward: (tokens, targets), each (B, T) -> logits (B, T, V) and the mean loss.
        optimizer: over the module's parameters.
        to_torch: our parameters -> the module's, by its names.
        from_torch: the way back; gradients take it too.
        settings: schedule, clipping and `dtype`.
        iteration: number of updates made.
    """

    name: str
    module: nn.Module
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer
    to_torch: Callable[[Params], StateDict]
    from_torch: Callable[[StateDict], Params]
    settings: Settings
    iteration: int = 0

    def load(self, params: Params) -> None:
        """As `Side.load`."""
        given = self.to_torch(params)
        with torch.no_grad():
            for name, tensor in self._parameters():
                tensor.copy_(torch.from_numpy(given[name]))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As `Side.logits`."""
        with torch.no_grad():
            return self._run(Batch(tokens, tokens))[0].float().numpy()

    def gradients(self, batch: Batch) -> tuple[float, Params]:
        """As `Side.gradients`: the sum over micro-batches of what each has of the mean."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = micro_batches(batch)
        total = 0.0
        for part in parts:
            loss = self._run(part)[1] / len(parts)
            loss.backward()
            total += loss.item()
        there = {name: tensor.grad.numpy() for name, tensor in self._parameters() if tensor.grad is not None}
        return total, self.from_torch(there)  # which refuses what is missing

    def step(self, batch: Batch) -> float:
        """As `Side.step`, in the order of nanoGPT's loop: rate, micro-batches, clipping, update."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.iteration)
        loss, _ = self.gradients(batch)
        if self.settings.grad_clip > 0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        self.iteration += 1
        return loss

    def parameters(self) -> Params:
        """As `Side.parameters`."""
        return self.from_torch({name: tensor.detach().numpy().copy() for name, tensor in self._parameters()})

    def greedy(self, prompt: np.ndarray, n: int) -> np.ndarray:
        """As `Side.greedy`: every token re-reads the last `block_size` there are."""
        text = prompt.tolist()
        for _ in range(n):
            window = np.array(text[-self.settings.block_size :])
            text.append(int(self.logits(window[None])[0, -1].argmax()))
        return np.array(text[len(prompt) :])

    def learning_rates(self, n: int) -> np.ndarray:
        """As `Side.learning_rates`."""
        return np.array([learning_rate(self.settings, iteration) for iteration in range(n)])

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and loss, with the matrix products in the type that the settings name."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            return self.forward(*(torch.from_numpy(part.astype(np.int64)) for part in batch))

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every name of every parameter: a tied head has two."""
        return self.module.named_parameters(remove_duplicate=False)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in float32, in nats per token."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def hugging_face(config: GPTConfig, settings: Settings) -> TorchSide:
    """GPT-2, Llama or Qwen3 of `transformers`, as the config asks, built from it: nothing is downloaded."""
    import transformers

    module = hf_model(hf_config_of(config))

    def forward(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = module(tokens, use_cache=False).logits
        return logits, mean_loss(logits, targets)

    return TorchSide(
        f"Hugging Face {type(module).__name__} (transformers {transformers.__version__}, torch {torch.__version__})",
        module,
        forward,
        adamw(module, settings),
        lambda params: hf_state_dict_of(params, config),
        lambda state_dict: hf_params_of(state_dict, config),
        settings,
    )


def nanogpt(checkout: Path, config: GPTConfig, settings: Settings) -> TorchSide:
    """The `GPT` and the `configure_optimizers` of the `model.py` in a nanoGPT checkout, as they stand.

    As `torch_training.nanogpt_model`.
    """
    model_args = nanogpt_model_args_of(config)
    module, optimizer = nanogpt_model(checkout, model_args, settings, "cpu")
    return TorchSide(
        f"nanoGPT in {checkout} (torch {torch.__version__})",
        module,
        module,
        optimizer,
        lambda params: state_dict_of(params, config, "nanogpt"),
        lambda state_dict: params_of(state_dict, config, "nanogpt"),
        settings,
    )
