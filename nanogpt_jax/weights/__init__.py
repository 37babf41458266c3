"""Checkpoints of ours, and the files of nanoGPT and Hugging Face, a file each.

Nothing of a training loop and no flags come in, and nothing that lies in a file is ever executed. A new file format
belongs here.
"""
