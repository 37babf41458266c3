"""`python -m nanogpt_jax.evaluate`: whether training helped, measured on texts, on choices and on completions.

`tasks` reads files, `passages` lays their items out in tokens, `scores` asks the model, `figures` adds up; `models`
takes one model after the other through all of that. A new measure belongs here; training, drawing text and the network
must not come in.
"""
