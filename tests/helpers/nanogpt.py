"""A folder that stands for a checkout of nanoGPT, where what is asked of it is little."""

from pathlib import Path

from tests.helpers.torch_twin import CHECKOUT

# What `bench record` asks of it: a program that reads its tokens, and tells a loss at the end.
TRAIN = """
import pickle, sys
import numpy as np
meta = pickle.load(open("data/shakespeare_char/meta.pkl", "rb"))
tokens = np.fromfile("data/shakespeare_char/train.bin", np.uint16)
assert tokens.max() < meta["vocab_size"] and sys.argv[1] == "config/train_shakespeare_char.py"
print("step 0: train loss 4.1, val loss 4.2")
print("step 2000: train loss 1.8, val loss 1.9051")
"""


def write_checkout(folder: Path) -> None:
    """Write the files that are asked for."""
    (folder / "config").mkdir(parents=True)
    (folder / "configurator.py").touch()
    (folder / "model.py").write_text(CHECKOUT)
    (folder / "train.py").write_text(TRAIN)
