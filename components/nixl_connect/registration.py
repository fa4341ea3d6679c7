"""Which memory NIXL knows, and for how long. All methods belong to the owner thread.

A region is registered once and then used by every operation whose buffers lie inside it. It stays while anybody
holds it: an operation, a pool, ``register_memory``, or simply the object that owns the memory, as long as that lives.
"""

from __future__ import annotations

import base64
import logging
import weakref
from bisect import bisect_right, insort
from collections.abc import Callable
from typing import Any

from .agent import Agent
from .descriptor import Descriptor
from .device import Device
from .errors import TransferError

logger = logging.getLogger(__name__)


class Region:
    """One registration. ``id`` is never used again within the life of the agent. ``end`` fires when the memory's owner
    dies, which holds the region until then."""

    __slots__ = ("_metadata", "device", "end", "holders", "id", "ptr", "registration", "size")

    def __init__(self, id: int, ptr: int, size: int, device: Device, registration: Any) -> None:
        self.id, self.ptr, self.size, self.device, self.registration = id, ptr, size, device, registration
        self.holders = 1
        self.end: weakref.finalize[Any, Any] | None = None
        self._metadata: str | None = None

    def covers(self, ptr: int, size: int, device: Device) -> bool:
        return device == self.device and self.ptr <= ptr and ptr + size <= self.ptr + self.size

    def metadata(self, agent: Agent) -> str:
        """What a peer needs to reach this region and nothing else, base64. Made once."""
        if self._metadata is None:
            self._metadata = base64.b64encode(agent.metadata(self.registration)).decode()
        return self._metadata


class Registry:
    def __init__(self, agent: Agent, submit: Callable[[Callable[[], None]], bool], gone: Callable[[int], None]) -> None:
        """``gone`` is told the id of every region that ends."""
        self._agent = agent
        self._submit = submit
        self._gone = gone
        self._regions: dict[int, Region] = {}
        self._starts: list[tuple[int, int]] = []  # (ptr, id), sorted
        self._largest = 0
        self._next_id = 0
        self._kept: dict[tuple[int, int, Device], Region] = {}
        self.registered_total = 0

    def __len__(self) -> int:
        return len(self._regions)

    @property
    def bytes(self) -> int:
        return sum(region.size for region in self._regions.values())

    def hold(self, descriptor: Descriptor) -> Region:
        """The region the descriptor lies in, held once more: registered now if there is none. A new one is kept for as
        long as the memory's owner lives, so that the next operation finds it."""
        region = self._find(descriptor)
        if region is None:
            region = self._register(descriptor)
        region.holders += 1
        return region

    def release(self, region: Region) -> None:
        region.holders -= 1
        if region.holders == 0:
            del self._regions[region.id]
            self._starts.remove((region.ptr, region.id))
            self._deregister(region)
            self._gone(region.id)

    def keep(self, descriptor: Descriptor) -> None:
        """``Descriptor.register_memory``: hold until ``unkeep``; twice is once."""
        place = (descriptor.ptr, descriptor.size, descriptor.device)
        if place not in self._kept:
            self._kept[place] = self.hold(descriptor)

    def unkeep(self, descriptor: Descriptor) -> None:
        region = self._kept.pop((descriptor.ptr, descriptor.size, descriptor.device), None)
        if region is not None:
            self.release(region)

    def close(self) -> None:
        """Deregister everything. No transfer may be in flight."""
        regions = list(self._regions.values())
        self._regions.clear()
        self._starts.clear()
        self._kept.clear()
        for region in regions:
            self._deregister(region)

    def _find(self, descriptor: Descriptor) -> Region | None:
        index = bisect_right(self._starts, (descriptor.ptr, self._next_id))
        # Regions may overlap: look back as far as the largest one reaches.
        for ptr, id in reversed(self._starts[:index]):
            if ptr + self._largest < descriptor.ptr:
                return None
            if self._regions[id].covers(descriptor.ptr, descriptor.size, descriptor.device):
                return self._regions[id]
        return None

    def _register(self, descriptor: Descriptor) -> Region:
        span = (descriptor.ptr, descriptor.size, descriptor.device.id)
        registration = self._agent.register(span, descriptor.device)
        region = Region(self._next_id, descriptor.ptr, descriptor.size, descriptor.device, registration)
        try:
            self._end_with(descriptor, region)
        except BaseException:
            self._deregister(region)
            raise
        self._next_id += 1
        self.registered_total += 1
        self._regions[region.id] = region
        self._largest = max(self._largest, region.size)
        insort(self._starts, (region.ptr, region.id))
        return region

    def _end_with(self, descriptor: Descriptor, region: Region) -> None:
        # The finalizer may run on any thread. Whatever reuses the address can only be registered after it in the queue.
        try:
            region.end = weakref.finalize(descriptor.owner, self._submit, lambda: self._drop(region))
        except TypeError:  # no weak reference to the owner (a bytearray's exporter, None): the descriptor stands for it
            region.end = weakref.finalize(descriptor, self._submit, lambda: self._drop(region))
        region.end.atexit = False

    def _deregister(self, region: Region) -> None:
        if region.end is not None:
            region.end.detach()  # it holds this registry, and so the agent, for as long as the memory lives
        try:
            self._agent.deregister(region.registration)
        except TransferError as error:
            # NIXL keeps it until the agent goes. Whoever gives back more than this must get on with the rest.
            logger.warning("%d bytes at %#x stay registered: %s", region.size, region.ptr, error)

    def _drop(self, region: Region) -> None:
        if region.id in self._regions:
            self.release(region)


class Hold:
    """Buffers that an operation may touch. Their slots are taken from the beginning, on the caller's thread, so that
    the caller may release its own hold at once; their regions when the owner thread gets to it; both until
    ``release``."""

    __slots__ = ("_registry", "buffers", "regions")

    def __init__(self, buffers: list[Descriptor]) -> None:
        self._registry: Registry | None = None
        self.buffers: list[Descriptor] = []
        self.regions: list[Region] = []
        try:
            for buffer in buffers:
                if buffer.guard is not None:
                    buffer.guard.retain()
                self.buffers.append(buffer)
        except TransferError:
            self.release()
            raise

    def register(self, registry: Registry) -> None:
        """Owner thread. Raises as ``Registry.hold``; then ``release`` is still due."""
        self._registry = registry
        region: Region | None = None
        for buffer in self.buffers:
            # Buffers of one operation mostly lie side by side.
            if region is not None and region.covers(buffer.ptr, buffer.size, buffer.device):
                region.holders += 1
            else:
                region = registry.hold(buffer)
            self.regions.append(region)

    def release(self) -> None:
        """Give everything back. A second call does nothing. Owner thread, once registered. Does not raise: what comes
        after it, the word that the operation has ended, must be passed on."""
        regions, self.regions = self.regions, []
        buffers, self.buffers = self.buffers, []
        registry, self._registry = self._registry, None
        if registry is not None:
            for region in regions:
                registry.release(region)
        for buffer in buffers:
            if buffer.guard is not None:
                try:
                    buffer.guard.release()
                except TransferError as error:  # the application released it once too often, while we held it
                    logger.error("%r: %s", buffer, error)
