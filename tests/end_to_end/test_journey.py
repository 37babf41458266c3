"""The preset `shakespeare_char` at its own size, 10.7 million parameters, through all that is done with a model."""

import pytest

from .journey import SHAKESPEARE_CHAR, Journey


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was begun on a terminal and stopped there, and what it then suggested."""
    journey = Journey(SHAKESPEARE_CHAR, tmp_path_factory.mktemp("journey"))
    journey.prepare()
    return journey, journey.begin_and_stop()


@pytest.fixture(scope="module")
def resumed(begun):
    """The run after one update more, its loss over the whole split, and the text that it gives."""
    journey, suggested = begun
    before = journey.updates()
    loss = journey.final_loss(journey.resume(suggested))
    assert journey.updates() == before + 1 == len(journey.losses())
    return journey, loss, journey.sample("--out_dir=out")


def test_it_is_watched_on_a_terminal(begun):
    words = begun[0].words()
    for what in ("10,745,088 parameters", "step 0: train loss", "tokens/s", "learning rate", "text at step 0"):
        assert what in words


def test_it_learns(resumed):
    _, loss, text = resumed
    assert loss < 4.1  # from ln 65 = 4.17
    assert text.startswith("ROMEO:") and len(text) > 30


def test_it_speaks_by_an_absolute_path_and_from_another_folder(resumed):
    journey, _, text = resumed
    assert journey.sample(f"--init_from={journey.folder / 'out'}", cwd=journey.elsewhere) == text
    assert journey.sample("--out_dir=../Zwei Wörter/out", cwd=journey.elsewhere) == text


def test_its_weights_are_evaluated_and_trained_on(resumed):
    journey, loss, _ = resumed
    assert journey.final_loss(journey.run("train.py", "--init_from=out", "--eval_only")) == loss
    flags = (f"--init_from={journey.folder / 'out'}", f"--data_dir={journey.folder / 'data'}", "--out_dir=on top")
    journey.run("train.py", *flags, "--max_iters=1", "--eval_iters=1", "--batch_size=1", cwd=journey.elsewhere)
    assert (journey.elsewhere / "on top" / "metrics.jsonl").is_file()


def test_it_goes_to_nanogpt_and_comes_back(resumed):
    journey, loss, text = resumed
    journey.run("convert", "out", "to nanoGPT/ckpt.pt")
    there = journey.folder / "to nanoGPT" / "ckpt.pt"
    flags = (f"--init_from={there}", "--eval_only", "--data_dir=../Zwei Wörter/data")
    assert journey.final_loss(journey.run("train.py", *flags, cwd=journey.elsewhere)) == loss
    journey.run("convert", there, "back", "--tokenizer=data/shakespeare_char")
    assert journey.sample("--out_dir=back") == text


def test_it_goes_to_hugging_face_and_comes_back(resumed):
    journey, loss, _ = resumed
    journey.run("convert", journey.folder / "out", "to hf", "--to=hf", cwd=journey.elsewhere)
    flags = ("--init_from=../elsewhere/to hf", "--eval_only")
    assert journey.final_loss(journey.run("train.py", *flags)) == pytest.approx(loss, abs=2e-4)


def test_the_lens_looks_at_it(resumed):
    journey, _, _ = resumed
    journey.run("lens", "--start=ROMEO:", "--max_new_tokens=8", "--html=in it/lens.html")
    assert "10,745,088 parameters" in (journey.folder / "in it" / "lens.html").read_text(encoding="utf-8")
