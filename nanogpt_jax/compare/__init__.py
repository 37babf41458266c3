"""`python -m nanogpt_jax.compare`: the same numbers as PyTorch, row by row.

PyTorch is imported in this folder and in `bench`, late, and nowhere else but where its files are read. A new row of the
table belongs here.
"""
