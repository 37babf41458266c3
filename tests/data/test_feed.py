"""Batches made ahead of time: in order, never too many, and with their errors where they are due."""

import threading

import pytest

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.feed import AHEAD, ahead


def test_items_come_in_order_and_few_are_made_ahead():
    made = []
    batches = ahead(lambda i: made.append(i) or i, range(20))
    for expected in range(20):
        assert next(batches) == expected
        assert len(made) <= expected + 1 + AHEAD
    assert list(batches) == []


def test_an_error_is_raised_as_itself_where_it_is_due():
    def make(i):
        if i == 3:
            raise UserError("train.bin has 100 bytes where 2,000 were")
        return i

    batches = ahead(make, range(10))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="100 bytes"):
        next(batches)


def test_closing_ends_the_thread():
    before = threading.active_count()
    batches = ahead(lambda i: i, range(1000))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
