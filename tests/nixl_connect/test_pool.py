"""Pools: who waits for room gets it; and where there is a GPU, with its driver stood in for, what is pinned is
unpinned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from components.nixl_connect import Device, PoolExhausted, cuda
from components.nixl_connect.pool import Pool, Slab

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
