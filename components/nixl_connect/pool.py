"""A slab of memory, registered once, cut into slots: what embeddings and other per-request buffers live in."""

from __future__ import annotations

import asyncio
import math
import mmap
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import numpy as np

from . import cuda
from .descriptor import Descriptor
from .device import Device
from .errors import DeviceUnavailable, InvalidBuffer, PoolExhausted

ALIGNMENT = 256
"""Bytes: what CUDA's own allocator gives, and a multiple of every cache line."""


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _unpin(driver: cuda.Driver, gpu: Device, address: int) -> None:
    with driver.current(gpu):
        driver.unpin(address)


class Slab:
    """Memory of one device, prefaulted: the first touch of a page costs more than moving it."""

    def __init__(self, size: int, device: Device, gpu: Device | None) -> None:
        """Host memory is pinned for ``gpu``, if there is one: copies between the two then run at full speed."""
        self.size, self.device = size, device
        self._tensor: Any = None
        self._array: np.ndarray[Any, Any] | None = None
        if device.is_host:
            memory = mmap.mmap(-1, size)
            memory.madvise(mmap.MADV_HUGEPAGE)
            self._array = np.frombuffer(memory, dtype=np.uint8)
            self._array[:: mmap.PAGESIZE] = 0
            self.descriptor = Descriptor(self._array)
            driver = cuda.driver()
            if gpu is not None and driver is not None:
                with driver.current(gpu):
                    driver.pin(self.descriptor.ptr, size)
                # Before the memory goes: what is mapped at that address next could not be pinned any more.
                weakref.finalize(self._array, _unpin, driver, gpu, self.descriptor.ptr).atexit = False
        else:
            try:
                import torch
            except ModuleNotFoundError:
                raise DeviceUnavailable(f"a pool on {device} is allocated by torch, which is not installed") from None
            self._tensor = torch.zeros(size, dtype=torch.uint8, device=str(device))
            torch.cuda.synchronize(str(device))
            self.descriptor = Descriptor(self._tensor)

    def numpy(self, offset: int, size: int) -> np.ndarray[Any, Any]:
        if self._array is None:
            raise InvalidBuffer(f"memory of {self.device} is no numpy array: ask for a tensor")
        return self._array[offset : offset + size]

    def tensor(self, offset: int, size: int) -> Any:
        import torch

        whole = torch.from_numpy(self._array) if self._tensor is None else self._tensor
        return whole[offset : offset + size]


class _Waiter:
    """One ``reserve`` in the queue. Its slot is decided under the pool's lock; the future only wakes who waits."""

    __slots__ = ("_loop", "future", "nbytes", "slot")

    def __init__(self, nbytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self.nbytes = nbytes
        self.slot: Slot | None = None
        self.future: asyncio.Future[None] = loop.create_future()
        self._loop = loop

    def wake(self) -> bool:
        """From any thread. False when its event loop is closed, so that nobody waits."""
        try:
            self._loop.call_soon_threadsafe(self.end)
        except RuntimeError:
            return False
        return True

    def end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Pool:
    """Slots of any size, first fit, neighbours merged when freed. Safe from any thread; made by
    ``Connector.create_pool``.

    First come, first served: while a ``reserve`` waits, nothing that came later gets bytes, not even bytes that would
    be enough for it alone. Else a long reservation would wait for ever behind short ones.
    """

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = [(0, slab.size)]  # (offset, bytes), sorted, no two adjacent
        self._used = 0
        self._waiting: deque[_Waiter] = deque()

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._slab.size

    @property
    def used(self) -> int:
        """Bytes that slots hold now, alignment included. Zero when every slot is released."""
        return self._used

    @property
    def device(self) -> Device:
        return self._slab.device

    @property
    def descriptor(self) -> Descriptor:
        """The whole slab."""
        return self._slab.descriptor

    def allocate(self, nbytes: int) -> Slot:
        """A slot of at least that many bytes, held once; contents are what was there. Raises ``PoolExhausted`` when
        there is no room, or when there is some and others wait for it (``reserve``)."""
        if nbytes <= 0:
            raise InvalidBuffer(f"a slot of {nbytes} bytes")
        with self._lock:
            waiting = len(self._waiting)
            slot = None if waiting else self._take(nbytes)
            if slot is None:
                raise self._exhausted(nbytes, waiting)
            return slot

    async def reserve(self, nbytes: int, *, deadline: float) -> Slot:
        """As ``allocate``, but waits in turn, up to ``deadline`` seconds, for others to give back what they hold.
        More bytes than the pool has are refused at once."""
        if nbytes <= 0:
            raise InvalidBuffer(f"a slot of {nbytes} bytes")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(nbytes, loop)
        with self._lock:
            slot = None if self._waiting else self._take(nbytes)
            if slot is not None:
                return slot
            if _aligned(nbytes) > self.size or not deadline > 0:
                raise self._exhausted(nbytes, len(self._waiting))
            self._waiting.append(waiter)
        timer = loop.call_later(deadline, waiter.end)
        try:
            await waiter.future
        except asyncio.CancelledError:
            slot = self._leave(waiter)
            if slot is not None:
                slot.release()
            raise
        finally:
            timer.cancel()
        slot = self._leave(waiter)
        if slot is None:
            with self._lock:
                raise self._exhausted(nbytes, len(self._waiting))
        return slot

    def _exhausted(self, nbytes: int, waiting: int) -> PoolExhausted:
        queue = f", and {waiting} wait for room" if waiting else ""
        return PoolExhausted(f"no {nbytes} bytes in one piece: {self.size - self._used} of {self.size} are free{queue}")

    def _take(self, nbytes: int) -> Slot | None:
        """Under the lock."""
        need = _aligned(nbytes)
        for index, (offset, size) in enumerate(self._free):
            if size >= need:
                if size == need:
                    del self._free[index]
                else:
                    self._free[index] = (offset + need, size - need)
                self._used += need
                return Slot(self, offset, nbytes, need)
        return None

    def _leave(self, waiter: _Waiter) -> Slot | None:
        """The slot it was given, or None: then it waits no more, and those behind it may go on."""
        with self._lock:
            if waiter.slot is None:
                self._waiting.remove(waiter)
                self._serve()
            return waiter.slot

    def _serve(self) -> None:
        """Under the lock: give to those who wait what is there, in turn."""
        while self._waiting:
            waiter = self._waiting[0]
            slot = self._take(waiter.nbytes)
            if slot is None:
                return
            self._waiting.popleft()
            if waiter.wake():
                waiter.slot = slot
            else:
                self._put(slot.offset, slot._need)

    def _put(self, offset: int, size: int) -> None:
        """Under the lock."""
        self._used -= size
        index = bisect_left(self._free, (offset, 0))
        if index < len(self._free) and offset + size == self._free[index][0]:
            size += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == offset:
            start, before = self._free.pop(index - 1)
            offset, size = start, before + size
        insort(self._free, (offset, size))

    def _give_back(self, offset: int, size: int) -> None:
        with self._lock:
            self._put(offset, size)
            self._serve()


class Slot:
    """Bytes of a pool, shared by counting. The views are valid while somebody holds the slot.

    Operations on ``descriptor`` hold the slot themselves, from ``create_*`` or ``begin_*`` until no peer can touch it.
    """

    __slots__ = ("_holders", "_lock", "_need", "_pool", "descriptor", "offset", "size")

    def __init__(self, pool: Pool, offset: int, size: int, need: int) -> None:
        self._pool, self._need = pool, need
        self._holders = 1
        self._lock = threading.Lock()
        self.offset, self.size = offset, size
        self.descriptor = pool.descriptor.part(offset, size)
        self.descriptor.guard = self

    @property
    def holders(self) -> int:
        return self._holders

    def retain(self) -> Slot:
        """Hold once more. Raises ``InvalidBuffer`` for a slot that was given back already."""
        with self._lock:
            if self._holders == 0:
                raise InvalidBuffer("the slot was given back to its pool")
            self._holders += 1
        return self

    def release(self) -> None:
        """Hold once less; the last one gives the bytes back. Raises ``InvalidBuffer`` when nobody holds it."""
        with self._lock:
            if self._holders == 0:
                raise InvalidBuffer("the slot was released more often than held")
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._pool._give_back(self.offset, self._need)

    def numpy(self, dtype: Any = np.uint8, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
        """A view of the first bytes as this dtype and shape (default: all of them, flat). Host memory only."""
        kind = np.dtype(dtype)
        count = self.size // kind.itemsize if shape is None else math.prod(shape)
        self._check(count * kind.itemsize)
        flat: np.ndarray[Any, Any] = self._pool._slab.numpy(self.offset, count * kind.itemsize).view(kind)
        return flat if shape is None else flat.reshape(shape)

    def tensor(self, dtype: Any, shape: tuple[int, ...] | None = None) -> Any:
        """The same as a torch tensor on the pool's device."""
        count = self.size // dtype.itemsize if shape is None else math.prod(shape)
        self._check(count * dtype.itemsize)
        flat = self._pool._slab.tensor(self.offset, count * dtype.itemsize).view(dtype)
        return flat if shape is None else flat.view(shape)

    def _check(self, need: int) -> None:
        if need > self.size:
            raise InvalidBuffer(f"a view of {need} bytes in a slot of {self.size}")

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
