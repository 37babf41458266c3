"""Batches are pure functions of (seed, split, index), and every target of a split is seen once in the whole pass."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.dataset import TokenFile, open_tokens, random_batch, whole_split


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "train.bin"
    (np.arange(1000) % 50).astype("<u2").tofile(path)
    return open_tokens(path, vocab_size=50, block_size=8)


def test_a_batch_depends_on_seed_split_and_index_alone(token_file):
    first = random_batch(token_file, "train", 1, 5, (4,), 8)
    random_batch(token_file, "train", 1, 6, (4,), 8)
    again = random_batch(token_file, "train", 1, 5, (4,), 8)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    others = [("val", 1, 5), ("train", 2, 5), ("train", 1, 6)]
    assert all(not np.array_equal(first.tokens, random_batch(token_file, *o, (4,), 8).tokens) for o in others)


def test_targets_are_the_tokens_one_later(token_file):
    batch = random_batch(token_file, "train", 0, 0, (3, 4), 8)
    assert batch.tokens.shape == batch.targets.shape == (3, 4, 8)
    np.testing.assert_array_equal((batch.tokens + 1) % 50, batch.targets)
    assert batch.tokens.dtype == np.int32


def test_every_window_can_be_drawn(tmp_path):
    path = tmp_path / "small.bin"
    np.arange(10, dtype="<u2").tofile(path)
    file = open_tokens(path, vocab_size=10, block_size=8)
    starts = {int(t[0]) for i in range(40) for t in random_batch(file, "train", 0, i, (2,), 8).tokens}
    assert starts == {0, 1}


@settings(max_examples=30, deadline=None)
@given(n=st.integers(9, 200), batch=st.integers(1, 5), block=st.integers(1, 8))
def test_the_whole_pass_predicts_each_token_but_the_first_once(tmp_path_factory, n, batch, block):
    path = tmp_path_factory.mktemp("whole") / "val.bin"
    np.arange(n, dtype="<u2").tofile(path)
    file = open_tokens(path, vocab_size=n, block_size=8)
    seen = []
    for part, weights in whole_split(file, batch, block):
        kept = weights.astype(bool)
        seen += part.targets[kept].tolist()
        np.testing.assert_array_equal(part.tokens[kept] + 1, part.targets[kept])
    assert seen == list(range(1, n))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(9, 200), batch=st.integers(1, 7), block=st.integers(1, 8), seed=st.integers(0, 3))
def test_without_replacement_each_token_comes_once_an_epoch(n, batch, block, seed):
    file = TokenFile(np.arange(n, dtype="<u2"), Path("train.bin"), n, once=True)
    windows = max(1, (n - block) // block)
    batches = [random_batch(file, "train", seed, i, (batch,), block) for i in range(-(-3 * windows // batch))]
    rows = np.concatenate([each.tokens for each in batches])
    np.testing.assert_array_equal(rows + 1, np.concatenate([each.targets for each in batches]))
    for epoch in range(3):
        seen = np.sort(rows[epoch * windows : (epoch + 1) * windows].ravel())
        np.testing.assert_array_equal(seen, np.arange(seen[0], seen[0] + windows * block))
    assert n - windows * block < 2 * block + (n < 2 * block)  # which is all that is left out
    again = random_batch(file, "train", seed, len(batches) - 1, (1, batch), block)
    np.testing.assert_array_equal(again.tokens[0], batches[-1].tokens)


def test_epochs_without_replacement_have_orders_and_places_of_their_own():
    file = TokenFile(np.arange(1000, dtype="<u2"), Path("train.bin"), 1000, once=True)
    firsts = [random_batch(file, "train", 0, i, (124,), 8).tokens[:, 0] for i in range(40)]
    assert {int(each.min()) for each in firsts} == set(range(8))  # where the first window begins
    orders = [tuple(np.argsort(each)) for each in firsts]
    assert len({*orders, tuple(np.argsort(random_batch(file, "train", 1, 0, (124,), 8).tokens[:, 0]))}) == 41
    val = [random_batch(each, "val", 0, 0, (50,), 8).tokens for each in (file, file._replace(once=False))]
    np.testing.assert_array_equal(*val)  # an estimate of the loss is drawn as ever


def write(path, tokens):
    np.asarray(tokens, "<u2").tofile(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "train.bin is missing; prepare the data set again: "),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-1]),
            r"1,999 bytes where 2,000 bytes \(1,000 tokens of uint16\) belong",
        ),
        (lambda p: p.write_bytes(p.read_bytes()[:-2]), "1,998 bytes where 2,000 bytes"),
        (lambda p: p.write_bytes(b""), "0 bytes"),
        (lambda p: write(p, [*range(999), 65]), "token 998 at position 65, outside the vocabulary of 65"),
        (lambda p: p.unlink() or p.mkdir(), "train.bin"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    path = tmp_path / "train.bin"
    write(path, np.arange(1000) % 65)
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        open_tokens(path, vocab_size=65, block_size=8, expected=1000)
    assert "\n" not in str(error.value) and "train.bin" in str(error.value)


def test_a_block_longer_than_the_split_is_refused(token_file):
    with pytest.raises(UserError, match=r"block_size=1000 does not fit .*1,000 tokens; choose at most 999"):
        open_tokens(token_file.path, vocab_size=50, block_size=1000)


def test_a_split_of_one_token_fits_no_block(tmp_path):
    write(tmp_path / "val.bin", [0])
    with pytest.raises(UserError, match=r"1 token, and none to predict; prepare a longer text"):
        open_tokens(tmp_path / "val.bin", vocab_size=50, block_size=8)


def cut(path, *sizes):
    """The tokens of a file in files of so many tokens each."""
    tokens, names = np.fromfile(path, "<u2"), []
    for i, part in enumerate(np.split(tokens, np.cumsum(sizes))):
        names.append(f"train_{i:03}.bin")
        part.tofile(path.parent / names[-1])
    return names


def test_shards_give_the_batches_of_one_file(token_file):
    names = cut(token_file.path, 5, 1, 400, 500)
    shards = open_tokens(token_file.path, vocab_size=50, block_size=8, expected=1000, shards=names)
    for i in range(20):
        for one, other in zip(*(random_batch(f, "train", 3, i, (16,), 8) for f in (token_file, shards)), strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(whole_split(token_file, 4, 8), whole_split(shards, 4, 8), strict=True):
        np.testing.assert_array_equal(one[0].tokens, other[0].tokens)


@settings(max_examples=50)
@given(
    cuts=st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True), a=st.integers(0, 100), b=st.integers(0, 100)
)
def test_any_slice_of_any_shards_is_that_of_the_whole(tmp_path_factory, cuts, a, b):
    path = tmp_path_factory.mktemp("cut") / "train.bin"
    np.arange(100, dtype="<u2").tofile(path)
    names = cut(path, *np.diff([0, *sorted(cuts)]))
    shards = open_tokens(path, vocab_size=100, block_size=8, shards=names)
    np.testing.assert_array_equal(shards.tokens[a:b], np.arange(100)[a:b])


@pytest.mark.parametrize("shards", [(), (400,)])
def test_a_file_that_shrinks_while_in_use_is_named(tmp_path, shards):
    path = tmp_path / "train.bin"
    write(path, np.arange(1000) % 50)
    names = cut(path, *shards) if shards else ()
    file = open_tokens(path, vocab_size=50, block_size=8, expected=1000, shards=names)
    victim = tmp_path / names[-1] if names else path
    before = victim.stat().st_size
    with open(victim, "r+b") as opened:
        opened.truncate(100)
    with pytest.raises(UserError, match=rf"{victim.name} has 100 bytes where {before:,} were") as error:
        for i in range(50):
            random_batch(file, "train", 0, i, (16,), 8)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path / "train_000.bin", range(50))
    with pytest.raises(UserError, match=r"train_001\.bin is missing"):
        open_tokens(tmp_path / "train.bin", 50, 8, 100, shards=("train_000.bin", "train_001.bin"))
