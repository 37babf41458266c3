"""Run by test_many.py in a process of its own, with as many virtual devices as its environment says.

Trains as many runs as there are devices, and prints their losses, and what its program sends between devices, as JSON.
"""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from nanogpt_jax.core.many import RUNS, make_many_step, side_by_side, stacked
from nanogpt_jax.core.optimizer import hyperparameters
from tests.core.test_many import USUAL, batch, first_state, model_of, together

_COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)\b"

in_turn = sys.argv[1] == "True"
mesh = Mesh(np.array(jax.devices()), (RUNS,))
runs = [USUAL, *(dataclasses.replace(USUAL, seed=seed) for seed in range(7, 6 + mesh.size))]

step = make_many_step(model_of(USUAL), USUAL, mesh=mesh, in_turn=in_turn)
states = stacked(lambda i: first_state(runs[i]), len(runs), mesh)
batches = side_by_side([batch(0, 0) for _ in runs], mesh)
numbers = side_by_side([hyperparameters(settings) for settings in runs], mesh)
program = step.lower(states, batches, numbers).compile().as_text()

states, losses = together(runs, 10, mesh, in_turn)
shards = jax.tree.leaves(states.params)[0].addressable_shards
found = {
    "collectives": re.findall(_COLLECTIVES, program),
    "runs on each device": [len(shard.data) for shard in shards],
    "losses": losses.tolist(),
}
print(json.dumps(found))
