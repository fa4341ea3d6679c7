"""CUDA through the driver library alone: no torch, no cupy, nothing at all on a machine without a GPU.

Why it matters: UCX asks for the current CUDA context when an agent is made and when a peer is loaded, to decide what it
can reach. Without one on that thread it marks ``cuda_ipc`` unreachable and falls back to software, silently: 0.5 GB/s
instead of 290 between two H200s. So the owner thread makes the device's primary context current before either.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .device import Device
from .errors import DeviceUnavailable

_NOT_READY = 600
_STREAM_NON_BLOCKING = 1
_EVENT_DISABLE_TIMING = 2


class Driver:
    """The few calls of ``libcuda`` that contexts and bounce buffers need. One instance a process: ``driver()``."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._call("cuInit", 0)
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        self.device_count = count.value

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            raise DeviceUnavailable(f"{name} failed with CUDA error {result}")

    def make_current(self, device: Device) -> None:
        """Make the device's primary context (the one torch uses too) current on this thread. Retained for ever."""
        self._call("cuCtxSetCurrent", self._context(device))

    @contextmanager
    def current(self, device: Device) -> Iterator[None]:
        """Current inside the block; this thread may be another's, who finds it as it was."""
        self._call("cuCtxPushCurrent_v2", self._context(device))
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _context(self, device: Device) -> ctypes.c_void_p:
        context = self._contexts.get(device.id)
        if context is None:
            handle, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(handle), device.id)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
            self._contexts[device.id] = context
        return context

    # What follows works on the current context.

    def allocate(self, size: int) -> int:
        """Address of that many bytes of device memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def allocate_pinned(self, size: int) -> int:
        """Address of that many bytes of host memory that devices reach at full speed."""
        address = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), 0)
        return address.value or 0

    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def pin(self, address: int, size: int) -> None:
        """Let devices reach this host memory at full speed, until ``unpin``."""
        self._call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size), 0)

    def unpin(self, address: int) -> None:
        self._call("cuMemHostUnregister", ctypes.c_void_p(address))

    def stream(self) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(made), _STREAM_NON_BLOCKING)
        return made

    def copy(self, target: int, source: int, size: int, stream: ctypes.c_void_p) -> None:
        """Begin a copy between any two addresses of host or device."""
        self._call("cuMemcpyAsync", ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(size), stream)

    def event(self) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(made), _EVENT_DISABLE_TIMING)
        return made

    def record(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        self._call("cuEventRecord", event, stream)

    def passed(self, event: ctypes.c_void_p) -> bool:
        result = self._library.cuEventQuery(event)
        if result not in (0, _NOT_READY):
            raise DeviceUnavailable(f"cuEventQuery failed with CUDA error {result}")
        return bool(result == 0)


@functools.cache
def driver() -> Driver | None:
    """The driver, or None where there is no usable GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    try:
        found = Driver(library)
    except DeviceUnavailable:
        return None
    return found if found.device_count else None


def device_in_use() -> Device | None:
    """The CUDA device that torch already uses in this process, if any. Never imports torch, never starts CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    return Device(f"cuda:{torch.cuda.current_device()}")
