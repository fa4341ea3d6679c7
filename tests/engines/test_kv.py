"""The KV pool: nothing is given out twice, everything comes back, nobody is overtaken."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from components.engines.base import EngineError
from components.engines.transformers.kv import KVPool, Run, cut, head, slots


def make_pool(tokens: int = 64) -> KVPool:
    return KVPool(2, tokens, 1, 4, dtype=torch.float32, device=torch.device("cpu"))


class Allocation(RuleBasedStateMachine):
    """Against a plain set of taken rows."""

    held = Bundle("held")

    @initialize()
    def start(self) -> None:
        self.pool = make_pool()
        self.taken: set[int] = set()

    @rule(target=held, tokens=st.integers(1, 30), contiguous=st.booleans())
    def take(self, tokens: int, contiguous: bool) -> list[Run]:
        runs = self.pool._take(tokens, contiguous)
        if runs is None:
            free = self.pool.tokens - len(self.taken)
            assert contiguous or free < tokens
            return []
        rows = slots(runs).tolist()
        assert len(rows) == tokens and len(set(rows)) == tokens
        assert not self.taken & set(rows)
        assert not contiguous or len(runs) == 1
        self.taken |= set(rows)
        return runs

    @rule(runs=consumes(held))
    def give_back(self, runs: list[Run]) -> None:
        if runs:
            self.taken -= set(slots(runs).tolist())
            self.pool.release(runs)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.used == len(self.taken)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.release([Run(row, 1) for row in sorted(self.taken)])
            assert self.pool._free == [Run(0, self.pool.tokens)]


TestAllocation = Allocation.TestCase
TestAllocation.settings = settings(max_examples=60, deadline=None)


async def test_who_waits_is_served_in_order_of_asking() -> None:
    pool = make_pool(10)
    first = await pool.acquire(8)
    long = asyncio.create_task(pool.acquire(9))
    short = asyncio.create_task(pool.acquire(2))
    await asyncio.sleep(0)
    assert not short.done(), "two rows are free, but the long one asked first"
    pool.release(first)
    runs = await long
    assert not short.done()
    pool.release(runs)
    pool.release(await short)
    assert pool.used == 0


async def test_a_waiter_that_gives_up_lets_the_next_one_through() -> None:
    pool = make_pool(10)
    first = await pool.acquire(8)
    long = asyncio.create_task(pool.acquire(9))
    short = asyncio.create_task(pool.acquire(2))
    await asyncio.sleep(0)
    long.cancel()
    second = await short
    pool.release(first)
    pool.release(second)
    assert pool.used == 0


async def test_a_waiter_cancelled_in_the_moment_it_is_served_gives_back() -> None:
    pool = make_pool(10)
    first = await pool.acquire(10)
    waiting = asyncio.create_task(pool.acquire(4))
    await asyncio.sleep(0)
    pool.release(first)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.used == 0


async def test_a_waiter_cancelled_just_before_its_turn_is_cancelled_and_no_more() -> None:
    pool = make_pool(10)
    first = await pool.acquire(10)
    waiting = asyncio.create_task(pool.acquire(4))
    behind = asyncio.create_task(pool.acquire(10))
    await asyncio.sleep(0)
    waiting.cancel()
    pool.release(first)  # Serves who stands behind, before the one who was cancelled runs again.
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pool.release(await behind)
    assert pool.used == 0


async def test_more_than_there_ever_is_is_refused_at_once() -> None:
    with pytest.raises(EngineError) as refused:
        await make_pool(10).acquire(11)
    assert refused.value.code == "context_length_exceeded"


def test_pieces_lie_layer_by_layer_keys_before_values() -> None:
    pool = make_pool(8)
    for layer in range(2):
        for kv in (0, 1):
            pool.tensor[layer, kv] = 10 * layer + kv
    pieces = pool.pieces([Run(0, 2), Run(5, 1)])
    assert [int(piece.flatten()[0]) for piece in pieces] == [0, 0, 1, 1, 10, 10, 11, 11]
    assert [len(piece) for piece in pieces] == [2, 1] * 4


def test_head_and_cut() -> None:
    assert head([Run(4, 3), Run(0, 2)], 4) == [Run(4, 3), Run(0, 1)]
    assert head([Run(4, 3), Run(0, 2)], 3) == [Run(4, 3)]
    assert cut(Run(10, 5), [2, 3]) == [Run(10, 2), Run(12, 3)]
