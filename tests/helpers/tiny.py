"""A data set of a few thousand characters and a model of a few thousand parameters, for tests of all but the model."""

from pathlib import Path

from nanogpt_jax.data.prepare import prepare_text

TINY = (
    "--dataset=tiny", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=8", "--batch_size=2", "--dropout=0.1",
    "--gradient_accumulation_steps=1", "--warmup_iters=10", "--lr_decay_iters=1000", "--learning_rate=1e-2",
    "--eval_interval=20", "--eval_iters=2", "--log_interval=1", "--accelerator=cpu",
)  # fmt: skip


def prepare_tiny(folder: Path, text: str = "to be or not to be, that is the question: ", times: int = 300) -> Path:
    """Prepare the data set `tiny` of `text`, so many times; the folder of the data sets."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text * times)
    prepare_text([folder / "text.txt"], folder / "data" / "tiny")
    return folder / "data"
