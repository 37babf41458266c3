"""Functions of arrays: settings, models, attention, loss, optimizer, the training step, sampling, sharding.

Nothing here reads a file, prints, looks at a clock or keeps state, and randomness is a key that is handed in. Of other
packages the core knows JAX, Flax, Optax, NumPy and jaxtyping alone; rotary positions or a new optimizer belong here.
"""
