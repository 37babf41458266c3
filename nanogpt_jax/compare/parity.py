"""Two programs, one model: whatever answers to `Side` is trained on the same batches, and every number compared.

`Ours` is this project's side; those of PyTorch are in `torch_side.py`, and the command around it is `command.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.optimizer import learning_rate_schedule, make_optimizer
from nanogpt_jax.core.sampling import generate
from nanogpt_jax.core.sampling_config import SamplingConfig
from nanogpt_jax.core.train_step import Batch, Params, init_params, init_state, loss_fn, make_train_step

GREEDY_TOKENS = 200
PROMPT_TOKENS = 8
ADAM_EPSILON = 1e-8
LOSSES = "loss of every batch"


class Tolerances(NamedTuple):
    """The largest differences allowed; absolute but for `gradients`. None is for what no bound can be given for."""

    logits: float
    loss: float  # of one batch, with the same weights
    gradients: float  # relative to the largest entry of each tensor
    first_step: float | None  # parameters after one update
    parameters: float  # parameters after all updates
    trained_loss: float  # the loss of a batch after any number of updates
    learning_rates: float
    greedy: int | None  # tokens that differ


# What float32 must reach. Measured with the default settings: 3e-6, 1e-6, 7e-7, 3e-7, 7e-7, 2e-6, 2e-10 and 0; with
# two updates of gpt2's 124M parameters: logits 4e-6, gradients 1.4e-6. The parameters' bound after all updates leaves
# room for shapes and data that round otherwise: a parameter may have gone some 0.1 in 200 updates.
FLOAT32 = Tolerances(1e-4, 1e-5, 1e-4, 1e-6, 1e-4, 2e-3, 1e-9, 0)

# In bfloat16 a number has 8 bits, and the two sides round at different places: PyTorch's autocast gives logits, losses
# and the residual stream's summands back in bfloat16, we keep them in float32. Measured with the default settings:
# logits 0.024 (among logits of 7, whose neighbours are 0.03 apart), loss 4e-5, gradients 1.4e-2, parameters 2.5e-3,
# trained loss 1.6e-3. Signs of small gradients differ, so that a first update, which Adam makes as large as the rate,
# may be off by twice the rate; and one near tie that is decided otherwise changes the rest of a greedy text.
BFLOAT16 = Tolerances(1e-1, 1e-3, 5e-2, None, 2e-2, 2e-2, 1e-9, None)

# Adam's first update is rate * g / (|g| + 1e-8): steep where g is nearly zero, so that what rounding left of a
# gradient whose terms cancel decides it. Such entries, which an error of this size in g moves past the tolerance, are
# left out of the parameters after one update, and the table says how many. At the first rate of a warm-up there are
# none (1e-5 * 1e-9 / 1e-8 is the tolerance itself); at the notebook's constant 1e-3 they are those with |g| < 1e-7.
GRADIENT_ROUNDING = 1e-9


@runtime_checkable
class Side(Protocol):
    """A model and its optimizer, in PyTorch or here: numpy in, numpy out, parameters as the trees of `model.py`."""

    name: str

    def load(self, params: Params) -> None:
        """Take these parameters; the optimizer is left as it is."""

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """(B, T) -> (B, T, V), float32."""

    def gradients(self, batch: Batch) -> tuple[float, Params]:
        """Mean loss and gradients of the batch, before clipping; nothing is updated."""

    def step(self, batch: Batch) -> float:
        """Make the next update of the schedule; the loss before it."""

    def parameters(self) -> Params:
        """A copy of the parameters."""

    def greedy(self, prompt: np.ndarray, n: int) -> np.ndarray:
        """The `n` tokens that follow the prompt (P,) when each is the likeliest."""

    def learning_rates(self, n: int) -> np.ndarray:
        """Those of updates 0 to n - 1."""


class Ours:
    """This project's side."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.name = "here"
        tx = make_optimizer(settings)
        params = init_params(model, settings.seed)
        self._model, self._settings = model, settings
        self._state = jax.jit(lambda params: init_state(params, tx, settings.seed))(params)
        self._train_step = make_train_step(model, tx)
        self._logits = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))
        self._value_and_grad = jax.jit(jax.value_and_grad(lambda params, batch: loss_fn(model, params, batch)))

    def load(self, params: Params) -> None:
        """As `Side.load`."""
        self._state = dataclasses.replace(self._state, params=jax.device_put(params))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As `Side.logits`."""
        return np.asarray(self._logits(self._state.params, tokens))

    def gradients(self, batch: Batch) -> tuple[float, Params]:
        """As `Side.gradients`."""
        parts = [self._value_and_grad(self._state.params, part) for part in micro_batches(batch)]
        loss, gradients = jax.device_get(jax.tree.map(lambda *values: sum(values) / len(parts), *parts))
        return float(loss), gradients

    def step(self, batch: Batch) -> float:
        """As `Side.step`."""
        self._state, metrics = self._train_step(self._state, batch)
        return float(metrics["loss"])

    def parameters(self) -> Params:
        """As `Side.parameters`."""
        return jax.tree.map(np.array, self._state.params)  # a copy: the next step takes over the memory

    def greedy(self, prompt: np.ndarray, n: int) -> np.ndarray:
        """As `Side.greedy`."""
        config = SamplingConfig(temperature=0, top_k=None)
        key = jax.random.key(0)  # needed, but not used at temperature 0
        return np.asarray(generate(self._model, self._state.params, prompt, key, max_new_tokens=n, config=config)[0])

    def learning_rates(self, n: int) -> np.ndarray:
        """As `Side.learning_rates`."""
        schedule = learning_rate_schedule(self._settings)
        return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(n, dtype=np.int32)))


def micro_batches(batch: Batch) -> list[Batch]:
    """The micro-batches (B, T) of a batch of shape (B, T) or (A, B, T)."""
    return [batch] if batch.tokens.ndim == 2 else [Batch(*part) for part in zip(*batch, strict=True)]


class Row(NamedTuple):
    """A line of the table: the largest difference of one quantity.

    `relative` is that of a tensor's largest difference to the reference's largest entry in the same tensor.
    """

    quantity: str
    at: str  # where it is
    absolute: float
    relative: float
    tolerance: float | None
    measure: Literal["absolute", "relative"] = "absolute"

    @property
    def verdict(self) -> str:
        """ok, MISSED (also for what is not a number), or - where there is no tolerance."""
        if self.tolerance is None:
            return "-"
        return "ok" if getattr(self, self.measure) <= self.tolerance else "MISSED"


class Comparison(NamedTuple):
    """The rows, and the losses of all batches before each update and after the last, (steps + 1,) each."""

    rows: list[Row]
    our_losses: np.ndarray
    reference_losses: np.ndarray

    @property
    def missed(self) -> bool:
        """Whether any tolerance was."""
        return any(row.verdict == "MISSED" for row in self.rows)


def compare(
    ours: Side, reference: Side, batch_of: Callable[[int], Batch], steps: int, settings: Settings
) -> Comparison:
    """Train both sides on batches 0 to `steps` - 1 from the weights of `ours`, and compare what they give on the way.

    `settings` are those both sides were made with: their `dtype` chooses the tolerances.
    """
    bounds = BFLOAT16 if settings.dtype == "bfloat16" else FLOAT32
    reference.load(ours.parameters())
    first, last = batch_of(0), batch_of(steps)
    tokens = np.asarray(micro_batches(first)[0].tokens)
    rates = [side.learning_rates(max(settings.max_iters, settings.lr_decay_iters) + 1) for side in (ours, reference)]

    rows = [_row("logits", {"": ours.logits(tokens)}, {"": reference.logits(tokens)}, bounds.logits)]
    (our_loss, our_gradients), (loss, gradients) = (_with_names(*side.gradients(first)) for side in (ours, reference))
    rows.append(_row("loss", {"": np.array(our_loss)}, {"": np.array(loss)}, bounds.loss))
    for name in gradients:
        pair = ({name: our_gradients[name]}, {name: gradients[name]})
        rows.append(_row("gradient", *pair, bounds.gradients, measure="relative"))

    losses = np.zeros((2, steps + 1))
    for step in range(steps):
        batch = batch_of(step)
        losses[:, step] = ours.step(batch), reference.step(batch)
        if step == 0:
            bound = bounds.first_step or 2.1 * rates[1][0]
            undecided = _undecided(our_gradients, gradients, rates[1][0], bound, settings.grad_clip)
            rows.append(_first_step_row(ours.parameters(), reference.parameters(), undecided, bound))
    losses[:, steps] = ours.gradients(last)[0], reference.gradients(last)[0]
    if steps > 1:
        rows += _parameter_rows(steps, ours.parameters(), reference.parameters(), bounds.parameters, settings)
    rows.append(_series_row(f"loss after {steps} updates", losses[:, steps:], bounds.trained_loss, "batch", steps))
    rows.append(_series_row(LOSSES, losses, bounds.trained_loss, "batch"))
    rows.append(_series_row("learning rate of every update", np.stack(rates), bounds.learning_rates, "update"))

    # Once more with the same weights, now that they know something: fresh ones continue any text with its last token.
    reference.load(ours.parameters())
    our_logits, logits = ({"": side.logits(tokens)} for side in (ours, reference))
    rows.append(_row("logits, trained weights", our_logits, logits, bounds.logits))
    prompt = tokens[0, :PROMPT_TOKENS]
    texts = np.stack([side.greedy(prompt, GREEDY_TOKENS) for side in (ours, reference)])
    differ = texts[0] != texts[1]
    at = f"token {differ.argmax()}" if differ.any() else ""
    share = float(differ.mean())
    rows.append(Row(f"greedy text, {GREEDY_TOKENS} tokens", at, int(differ.sum()), share, bounds.greedy))
    return Comparison(rows, *losses)


def _row(
    quantity: str,
    ours: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    tolerance: float | None,
    *,
    measure: Literal["absolute", "relative"] = "absolute",
) -> Row:
    """The row of a quantity that consists of the named arrays; `at` is the name of the worst."""
    gaps = np.array([np.max(np.abs(ours[name] - value)) for name, value in reference.items()])
    sizes = np.array([np.max(np.abs(value)) for value in reference.values()])
    ratios = np.divide(gaps, sizes, out=np.where(gaps == 0, 0.0, np.inf), where=sizes != 0)
    worst = int(np.argmax(ratios if measure == "relative" else gaps))  # as numpy has it, NaN is the largest of all
    return Row(quantity, list(reference)[worst], float(gaps.max()), float(ratios.max()), tolerance, measure)


def _series_row(quantity: str, values: np.ndarray, tolerance: float, unit: str, first: int = 0) -> Row:
    """The row of a quantity that has a value at each of several times: (2, N), ours and the reference's."""
    row = _row(quantity, {"": values[0]}, {"": values[1]}, tolerance)
    return row._replace(at=f"{unit} {first + int(np.argmax(np.abs(values[0] - values[1])))}")


def _first_step_row(
    ours: Params, reference: Params, undecided: Mapping[str, np.ndarray], tolerance: float | None
) -> Row:
    ours, reference = flatten_dict(ours, sep="/"), flatten_dict(reference, sep="/")
    decided = {name: np.where(undecided[name], reference[name], value) for name, value in ours.items()}
    row = _row("parameters after 1 update", decided, reference, tolerance)
    left_out = sum(int(mask.sum()) for mask in undecided.values())
    return row._replace(at=f"{row.at}; {left_out:,} entries left out") if left_out else row


def _undecided(
    ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], rate: float, tolerance: float, clip: float
) -> dict[str, np.ndarray]:
    """True for entries whose first update rounding decides, as `GRADIENT_ROUNDING` has it."""
    norm = math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in reference.values()))
    scale = min(1.0, clip / norm) if clip > 0 and norm > 0 else 1.0

    def mask(name: str) -> np.ndarray:
        size = scale * np.maximum(np.abs(ours[name]), np.abs(reference[name]))  # of both: one that is wrong stays in
        slope = rate * ADAM_EPSILON / (size + ADAM_EPSILON) ** 2
        return (size > 0) & (slope * GRADIENT_ROUNDING > tolerance)

    return {name: mask(name) for name in reference}


def _parameter_rows(steps: int, ours: Params, reference: Params, tolerance: float, settings: Settings) -> list[Row]:
    """The parameters after the last update; the biases of keys are apart.

    Such a bias adds the same to all scores of a query, which softmax does not see: its gradient is zero, what is
    computed for it is rounding alone, and Adam walks wherever that points. No two programs agree on it, and nothing
    depends on it. Where keys are turned by their positions, that is so of the pairs that hardly turn within a block.
    """
    ours, reference = flatten_dict(ours, sep="/"), flatten_dict(reference, sep="/")
    packed = [name for name in reference if name.endswith("attn/c_attn/bias")]
    of_keys = slice(*settings.gpt_config(settings.vocab_size or 1).qkv_cuts)
    ours_keys, their_keys = ({name: side[name][of_keys] for name in packed} for side in (ours, reference))
    for side in (ours, reference):
        side |= {name: np.delete(side[name], of_keys) for name in packed}
    rows = [_row(f"parameters after {steps} updates", ours, reference, tolerance)]
    return rows + ([_row(f"biases of keys after {steps} updates", ours_keys, their_keys, None)] if packed else [])


def _with_names(loss: float, gradients: Params) -> tuple[float, dict[str, np.ndarray]]:
    return loss, flatten_dict(gradients, sep="/")
