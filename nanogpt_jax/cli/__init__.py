"""The command lines: flags and files in, settings out, mistakes as one line; train, sample and prepare.

No arithmetic and no formats of files come in. A new command belongs here, or in a folder of its own if it needs more
than one file.
"""
