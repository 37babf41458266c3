"""Text to tokens on the disk, and tokens to batches on the devices.

The lowest room of the shell: what all of it needs lies here too (whole files, signals, commands in messages). Models
and checkpoints must not come in; a new tokenizer, source of text or task format belongs here.
"""
