"""Run by test_gpu.py in a process of its own, in which the CPU is all that JAX runs on.

Compiles programs for GPUs that are not there and prints what they are as JSON.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from nanogpt_jax.core.sampling import generate
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.compile_only.chips import chips_of
from nanogpt_jax.run.compile_only.report import compiled_step
from nanogpt_jax.run.mesh import mesh_shape
from nanogpt_jax.run.presets import preset

SETTINGS = preset(
    "gpt2", n_layer=4, n_head=8, n_embd=512, block_size=256, vocab_size=8192, batch_size=8,
    gradient_accumulation_steps=1,
)  # fmt: skip


def step(chips, mesh, **changes):
    there = chips_of(chips)
    settings = dataclasses.replace(SETTINGS, **changes)
    return told(compiled_step(settings, there, mesh_shape(mesh, len(there.devices)))[1])


def generation(chips, tokens):
    model = build_model(SETTINGS, SETTINGS.vocab_size, "gpu")
    place = SingleDeviceSharding(chips_of(chips).devices[0])

    def there(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    def texts(params, prompt, key):
        return generate(model, params, prompt, key, max_new_tokens=tokens, num_samples=2)

    params = jax.eval_shape(lambda: init_params(model, 0))
    prompt = jax.ShapeDtypeStruct((10,), jnp.int32)
    return told(jax.jit(texts).lower(*there((params, prompt, jax.random.key(0)))).compile())


def told(compiled):
    memory = compiled.memory_analysis()
    return {
        "text": compiled.as_text(),
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


if __name__ == "__main__":
    found = {
        "step": step("h100:1", "auto"),
        "fsdp": step("h100:8", "fsdp:8", remat=True),
        "generation": generation("h100:1", SETTINGS.block_size),
    }
    print(json.dumps(found))
