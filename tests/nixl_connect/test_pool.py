"""Pools: who waits for room gets it; and where there is a GPU, with its driver stood in for, what is pinned is
unpinned."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.nixl_connect import Device, PoolExhausted, Slot, cuda
from components.nixl_connect.pool import ALIGNMENT, Pool, Slab

from .harness import until

GPU = Device("cuda:0")


class Pins:
    """As the driver: memory may be pinned once, with a current context."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self._current = False

    @contextmanager
    def current(self, device: Device) -> Iterator[None]:
        assert device == GPU
        self._current = True
        yield
        self._current = False

    def pin(self, address: int, size: int) -> None:
        assert self._current and address not in self.pinned
        self.pinned[address] = size

    def unpin(self, address: int) -> None:
        assert self._current
        del self.pinned[address]


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Pins:
    found = Pins()
    monkeypatch.setattr(cuda, "driver", lambda: found)
    return found


def test_a_slab_is_pinned_for_as_long_as_its_memory_lives(pins: Pins) -> None:
    """On an H100 the second connector of a process could not pin its pool (CUDA error 712): it was mapped where the
    first one's had been, which was still pinned."""
    slab = Slab(1 << 20, Device("cpu"), GPU)
    assert pins.pinned == {slab.descriptor.ptr: 1 << 20}
    view = slab.numpy(0, 10)
    del slab
    assert pins.pinned, "somebody still looks at it"
    del view
    assert not pins.pinned


def test_without_a_gpu_nothing_is_pinned(pins: Pins) -> None:
    Slab(1 << 20, Device("cpu"), None)
    assert not pins.pinned


@pytest.fixture
def pool() -> Pool:
    return Pool(Slab(1 << 20, Device("cpu"), None))


async def test_who_waits_for_room_gets_it(pool: Pool) -> None:
    """Prefill refused requests as overloaded that had only to wait for those before them."""
    held = [pool.allocate(1 << 19) for _ in range(2)]
    waiting = [asyncio.create_task(pool.reserve(1 << 18, deadline=20.0)) for _ in range(4)]
    await until(lambda: len(pool._waiting) == 4)
    for slot in held:
        threading.Thread(target=slot.release).start()  # whose ``release`` may be on any thread
    slots = await asyncio.gather(*waiting)
    assert pool.used == 1 << 20
    for slot in slots:
        slot.release()
    assert pool.used == 0 and not pool._waiting


async def test_waiting_for_room_ends(pool: Pool) -> None:
    with pytest.raises(PoolExhausted):
        await pool.reserve((1 << 20) + 1, deadline=20.0)  # which nobody can give
    with pool.allocate(1):
        with pytest.raises(PoolExhausted):
            await pool.reserve(1 << 20, deadline=0.05)
        cancelled = asyncio.create_task(pool.reserve(1 << 20, deadline=20.0))
        await until(lambda: len(pool._waiting) == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    assert pool.used == 0 and not pool._waiting


async def test_a_long_reservation_is_not_overtaken(pool: Pool) -> None:
    """Short ones that came later took every byte that was given back: it waited for as long as they came."""
    held = [pool.allocate(1 << 18) for _ in range(4)]
    long = asyncio.create_task(pool.reserve(1 << 20, deadline=20.0))
    await until(lambda: len(pool._waiting) == 1)
    short = asyncio.create_task(pool.reserve(1 << 18, deadline=20.0))
    await until(lambda: len(pool._waiting) == 2)
    for slot in held[:3]:
        slot.release()
        with pytest.raises(PoolExhausted, match="2 wait"):
            pool.allocate(1)
    await asyncio.sleep(0)
    assert not long.done() and not short.done()
    held[3].release()
    (await long).release()
    (await short).release()
    assert pool.used == 0


async def test_who_gives_up_lets_those_behind_go_on(pool: Pool) -> None:
    with pool.allocate(1 << 18):
        first = asyncio.create_task(pool.reserve(1 << 20, deadline=0.05))
        behind = asyncio.create_task(pool.reserve(1 << 18, deadline=20.0))
        with pytest.raises(PoolExhausted):
            await first
        (await behind).release()
        first = asyncio.create_task(pool.reserve(1 << 20, deadline=20.0))
        behind = asyncio.create_task(pool.reserve(1 << 18, deadline=20.0))
        await until(lambda: len(pool._waiting) == 2)
        first.cancel()
        (await behind).release()
    assert pool.used == 0


def test_who_waits_on_a_closed_loop_is_passed_over(pool: Pool) -> None:
    held = pool.allocate(1 << 20)
    loop = asyncio.new_event_loop()
    gone = loop.create_task(pool.reserve(1 << 20, deadline=20.0))
    loop.run_until_complete(asyncio.sleep(0))
    assert len(pool._waiting) == 1
    loop.close()
    held.release()
    assert pool.used == 0 and not pool._waiting and not gone.done()
    gone._log_destroy_pending = False  # type: ignore[attr-defined]


class Model:
    """What a pool must have done, from nothing but which slots are held: who came first is served first, nobody waits
    that could be served, and nothing is held twice."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.waiting: list[tuple[int, asyncio.Task[Slot]]] = []
        self.held: list[Slot] = []
        self.gone: list[asyncio.Task[Slot]] = []

    def fits(self, nbytes: int) -> bool:
        need = -(-nbytes // ALIGNMENT) * ALIGNMENT
        ends, position = sorted((slot.offset, slot.offset + slot._need) for slot in self.held), 0
        for start, end in ends:
            if start - position >= need:
                return True
            position = end
        return self.pool.size - position >= need

    async def settle(self) -> None:
        """Everything that was to happen has happened: compare."""
        for _ in range(4):
            await asyncio.sleep(0)
        while self.waiting and self.waiting[0][1].done():
            self.held.append(self.waiting.pop(0)[1].result())
        assert not any(task.done() for _, task in self.waiting), "overtaken"
        assert not self.waiting or not self.fits(self.waiting[0][0]), "it could be served"
        assert all(task.cancelled() for task in self.gone)
        spans = sorted((slot.offset, slot.offset + slot._need) for slot in self.held)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), "lent twice"
        assert self.pool.used == sum(slot._need for slot in self.held)
        assert len(self.pool._waiting) == len(self.waiting)


blocks = 8
steps = st.one_of(
    st.tuples(st.just("reserve"), st.integers(1, blocks * ALIGNMENT)),
    st.tuples(st.just("allocate"), st.integers(1, blocks * ALIGNMENT)),
    st.tuples(st.sampled_from(["release", "cancel"]), st.integers(0, 1 << 16)),
    st.tuples(st.just("settle"), st.none()),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(steps, max_size=40))
def test_any_sequence_of_reserving_cancelling_and_releasing(sequence: list[tuple[str, int]]) -> None:
    """Between two ``settle`` nothing runs: what is cancelled may have been served already, and the other way round."""

    async def run() -> None:
        model = Model(Pool(Slab(blocks * ALIGNMENT, Device("cpu"), None)))
        pool = model.pool
        for what, number in sequence:
            if what == "reserve":
                model.waiting.append((number, asyncio.create_task(pool.reserve(number, deadline=60.0))))
                await asyncio.sleep(0)  # it is in the queue
            elif what == "allocate":
                await model.settle()
                expected = not model.waiting and model.fits(number)
                try:
                    model.held.append(pool.allocate(number))
                except PoolExhausted:
                    assert not expected
                else:
                    assert expected
            elif what == "release" and model.held:
                model.held.pop(number % len(model.held)).release()
            elif what == "cancel" and model.waiting:
                _, task = model.waiting.pop(number % len(model.waiting))
                if task.cancel():
                    model.gone.append(task)
                else:  # it had its slot
                    model.held.append(task.result())
            elif what == "settle":
                await model.settle()
        await model.settle()
        for _, task in model.waiting:
            task.cancel()
        for slot in model.held:
            slot.release()
        model.gone += [task for _, task in model.waiting]
        model.waiting, model.held = [], []
        await model.settle()
        assert pool._free == [(0, pool.size)]

    asyncio.run(run())
