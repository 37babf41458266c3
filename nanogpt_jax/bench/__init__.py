"""`python -m nanogpt_jax.bench`: an update and a token, measured beside PyTorch and beside the machine's limit.

Nothing imports this folder. A new measure belongs here.
"""
