"""Run by test_sharding.py in a process of its own, with as many virtual devices as its first argument says.

Trains one tiny model on every mesh and prints what it found as JSON.
"""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanogpt_jax.core import sharding
from nanogpt_jax.core.lora import init_delta, make_base
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import IGNORED, PackedBatch, init_params, init_state, make_train_step
from nanogpt_jax.data import feed
from nanogpt_jax.data.dataset import TokenFile
from nanogpt_jax.run.compile_only.hlo_traffic import groups_of, ways_of
from nanogpt_jax.run.mesh import make_mesh, mesh_shape, require_fit
from nanogpt_jax.run.presets import preset

STEPS = 20
KEY = np.array([0, 1], np.uint32)
SETTINGS = preset(
    "shakespeare_char_cpu", n_layer=1, n_head=4, n_embd=32, block_size=16, batch_size=8, bias=True, dropout=0.1,
    warmup_iters=2, seed=3,
)  # fmt: skip
SHAPES = {
    "gpt2": {},
    "llama": dict(
        position="rope", norm="rms", activation="swiglu", n_kv_head=2, bias=False, qk_norm=True, head_size=6,
        tie_word_embeddings=False,
    ),
    "muon": dict(optimizer="muon", n_kv_head=2),
    "lora, two texts a row": dict(position="rope", norm="rms", activation="swiglu", n_kv_head=2, bias=False),
    # The one key head each of two devices needs for its queries.
    "one key head": dict(position="rope", n_kv_head=1, token_shift=True),
}  # fmt: skip
FILE = TokenFile(np.random.default_rng(0).integers(0, 64, 2000).astype("<u2"), None, 64)


@jax.jit
def partly_ignored(batch):
    """The batch with more targets left out of later rows than of earlier ones: devices count unequally many."""
    rows = np.linspace(0, 1, SETTINGS.batch_size)[:, None]
    left_out = np.random.default_rng(2).random(batch.targets.shape) < rows
    return batch._replace(targets=jnp.where(left_out, IGNORED, batch.targets))


def collectives(program, shape):
    """Of each in a compiled program: its kind, the axes of the mesh that it goes along, and whether it is in a loop."""
    bodies = {m[1]: m[2] for m in re.finditer(r"^(?:ENTRY )?%(\S+) \(.*\{$\n((?:  .*\n)*)", program, re.MULTILINE)}
    in_loops, found = set(re.findall(r"body=%([\w.-]+)", program)), list(re.findall(r"body=%([\w.-]+)", program))
    while found:  # what a loop's body calls is in the loop
        called = re.findall(r"=\{?%([\w.-]+)", bodies[found.pop()])
        found += [name for name in called if name in bodies and name not in in_loops]
        in_loops.update(found)
    kinds = r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\((.*)"
    return [
        (kind, axes_of(kind, rest, shape), name in in_loops)
        for name, body in bodies.items()
        for kind, rest in re.findall(kinds, body)
    ]


def axes_of(kind, rest, shape):
    """The axes of the mesh along which devices of a group differ."""
    groups = ways_of(rest) if kind == "collective-permute" else groups_of(rest)
    assert groups and all(len(group) > 1 for group in groups), rest
    places = [np.transpose(np.unravel_index(group, shape)) for group in groups]
    return [axis for i, axis in enumerate(sharding.AXES) if any(np.ptp(place[:, i]) for place in places)]


def run(mesh_text, count, vocab_size, accumulate, shape_name="gpt2"):
    settings = dataclasses.replace(SETTINGS, **SHAPES[shape_name])
    model, tx = GPT(settings.gpt_config(vocab_size)), make_optimizer(settings)
    shape = mesh_shape(mesh_text, count)
    require_fit(shape, SETTINGS)
    mesh = None if count == 1 else make_mesh(shape, jax.devices()[:count])

    tuned = shape_name.startswith("lora")

    def make():
        params = init_params(model, SETTINGS.seed)
        if not tuned:
            return init_state(params, tx, SETTINGS.seed)
        return init_state(init_delta(model, KEY, 3, "attn,mlp"), tx, SETTINGS.seed, make_base(params, "float32", 2.0))

    def cut(batch):
        """Rows of two texts each, where the run is of such."""
        halves = np.arange(settings.block_size, dtype=np.int32) >= settings.block_size // 3
        return PackedBatch(*batch, jnp.broadcast_to(halves, batch.tokens.shape).astype(int)) if tuned else batch

    places = None if mesh is None else sharding.state_shardings(mesh, jax.eval_shape(make))
    rows = (SETTINGS.batch_size,) if accumulate == 1 else (accumulate, SETTINGS.batch_size)
    with sharding.use(mesh):
        state = jax.jit(make, out_shardings=places)()
        kernel = (state.base.variables["params"] if tuned else state.params)["h_0"]["mlp"]["c_fc"]["kernel"]
        moments = optax.tree.get(state.opt_state, "momentum" if shape_name == "muon" else "mu")
        moment = moments["h_0"]["mlp"]["c_fc"]["lora_A" if tuned else "kernel"]
        found = {
            "bits": [float(np.asarray(x, np.float64).sum()) for x in jax.tree.leaves(state.params)],
            "shards": [max(s.data.size for s in x.addressable_shards) / x.size for x in (kernel, moment)],
        }
        step, losses = make_train_step(model, tx, shardings=places), []
        batch = cut(feed.random_batch(mesh, FILE, "train", 1, 0, rows, SETTINGS.block_size))
        program = step.lower(state, batch).compile().as_text() if mesh is not None else ""
        for i in range(STEPS):
            batch = cut(feed.random_batch(mesh, FILE, "train", 1, i, rows, SETTINGS.block_size))
            state, metrics = step(state, partly_ignored(batch) if i >= STEPS // 2 else batch)
            losses.append(float(metrics["loss"]))
        after = (state.base.variables["params"] if tuned else state.params)["h_0"]["mlp"]["c_fc"]["kernel"]
        found["after"] = max(s.data.size for s in after.addressable_shards) / after.size
    return found | {"losses": losses, "collectives": collectives(program, shape)}


if __name__ == "__main__":
    runs = json.loads(sys.argv[1])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    print(json.dumps([run(*each) for each in runs]))
