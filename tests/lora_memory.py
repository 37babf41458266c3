"""`python -m tests.lora_memory`: the peak memory of an update of GPT-2 124M, all weights tuned, and by LoRA.

Each in a process of its own: weights are made, or read from a file as a user's are, and three updates of one text of
256 tokens are made. What the process held at most is what the kernel says of it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "all weights": None,
    "LoRA, base in float32": "float32",
    "LoRA, base in bfloat16": "bfloat16",
    "LoRA, base in int8": "int8",
}


def measured(way: str, file: Path) -> float:
    """MiB at most, of this process."""
    import jax
    import numpy as np
    from safetensors import numpy as safetensors

    from nanogpt_jax.core.lora import init_delta, make_base
    from nanogpt_jax.core.optimizer import make_optimizer
    from nanogpt_jax.core.train_step import Batch, init_params, init_state, make_train_step, purpose_key
    from nanogpt_jax.run.build import build_model
    from nanogpt_jax.run.presets import preset

    settings = preset("gpt2", block_size=256, batch_size=1, gradient_accumulation_steps=1)
    model, tx = build_model(settings, 50257, "cpu"), make_optimizer(settings)
    tree = jax.tree.structure(jax.eval_shape(lambda: init_params(model, 0)))
    if not file.exists():
        leaves = jax.tree.leaves(init_params(model, 0))
        safetensors.save_file({f"{i:04}": np.asarray(leaf) for i, leaf in enumerate(leaves)}, file)
        return 0.0
    arrays = safetensors.load_file(file)
    params = jax.tree.unflatten(tree, [jax.device_put(arrays.pop(name)) for name in sorted(arrays)])
    kind = WAYS[way]
    if kind is None:
        state = jax.jit(lambda params: init_state(params, tx, 0), donate_argnums=0)(params)
    else:
        base = jax.jit(lambda params: make_base(params, kind, 2.0), donate_argnums=0)(params)
        delta = init_delta(model, purpose_key(0, "init"), 8, "attn,mlp")
        state = init_state(delta, tx, 0, base)
    del params
    step = make_train_step(model, tx)
    tokens = np.random.default_rng(0).integers(0, 50257, (1, 257)).astype(np.int32)
    for _ in range(3):
        state, metrics = step(state, Batch(tokens[:, :-1], tokens[:, 1:]))
    assert np.isfinite(metrics["loss"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure each way in a process, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        found = {}
        for way in ("all weights", *WAYS):  # the first time, to make the file
            argv = [sys.executable, "-m", "tests.lora_memory", way, str(file)]
            found[way] = float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    print("| tuned | peak memory | share |\n|---|---|---|")
    for way, size in found.items():
        print(f"| {way} | {size:,.0f} MiB | {size / found['all weights']:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measured(sys.argv[1], Path(sys.argv[2])))
    else:
        main()
