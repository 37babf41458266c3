"""`python -m nanogpt_jax.lens`: a page on what a model computes while it reads a text.

`reading` makes the text, `activations` asks the model of the core; `page` lays what it says into a file that needs no
network. A new panel belongs here.
"""
