"""`python -m nanogpt_jax.lens`: a page on what a model computes while it reads a text.

What is computed is the core's; here it is laid into a page that needs no network. A new panel belongs here.
"""
