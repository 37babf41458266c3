"""Whatever files, flags, prompts and surroundings hold: a command succeeds, or ends in one line and changes nothing.

`FUZZ_EXAMPLES` is how many inputs are drawn in all; the suite draws few, a release 10,000.
"""
