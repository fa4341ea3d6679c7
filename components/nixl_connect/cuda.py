"""CUDA through the driver library alone: no torch, no cupy, nothing at all on a machine without a GPU.

Why it matters: UCX asks for the current CUDA context when an agent is made and when a peer is loaded, to decide what it
can reach. Without one on that thread it marks ``cuda_ipc`` unreachable and falls back to software, silently: 0.5 GB/s
instead of 290 between two H200s. So the owner thread makes the device's primary context current before either.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from .device import Device
from .errors import DeviceUnavailable


class Driver:
    """The few calls of ``libcuda`` that contexts need. One instance a process: ``driver()``."""

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
        context = self._contexts.get(device.id)
        if context is None:
            handle, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(handle), device.id)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
            self._contexts[device.id] = context
        self._call("cuCtxSetCurrent", context)


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
