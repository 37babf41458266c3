"""A training run: where it begins, its loop, what befalls it, and how it is told and shown.

Arithmetic belongs to the core, flags to `cli`. A new sink, signal or kind of job belongs here.
"""
