"""Bytes on a device as the transfer benchmark moves them, and what a plain copy of them takes."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.transfer_points import Point, row


class Memory:
    """Bytes on a device, as all that is compared needs them."""

    def __init__(self, device: str, size: int) -> None:
        self.device = device
        if device == "cpu":
            # Pages of 2 MiB, as the pool has them, so that neither side of the comparison pays for small ones.
            memory = mmap.mmap(-1, size)
            memory.madvise(mmap.MADV_HUGEPAGE)
            self.data: Any = np.frombuffer(memory, dtype=np.uint8)
            some = np.random.default_rng(1).integers(0, 256, 1 << 16, dtype=np.uint8)
            self.data[:] = some.repeat(-(-size >> 16))[:size]
            self.ptr, self.index, self.kind = self.data.ctypes.data, 0, "DRAM"
        else:
            import torch

            self.data = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
            torch.cuda.synchronize(device)
            self.ptr, self.index, self.kind = self.data.data_ptr(), self.data.get_device(), "VRAM"

    def spans(self, offset: int, piece: int, count: int) -> np.ndarray:
        return spans(self.ptr + offset, piece, count, self.index)

    def tensor(self) -> Any:
        import torch

        return torch.from_numpy(self.data) if self.device == "cpu" else self.data

    def fill(self, value: int) -> None:
        self.data[:] = value
        self.wait()

    def wait(self) -> None:
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)

    def same_as(self, value: int, size: int) -> bool:
        return bool((self.data[:size] == value).all())


def spans(address: int, piece: int, count: int, index: int) -> np.ndarray:
    """NIXL's triples (address, bytes, device) for equal pieces one after another."""
    return np.array([(address + i * piece, piece, index) for i in range(count)], dtype=np.uint64)


def touch(device: str) -> None:
    """Make the device's context current on this thread: raw NIXL needs it as much as anybody."""
    if device != "cpu":
        import torch

        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)


def cuda_of(*devices: str) -> str | None:
    return next((device for device in devices if device != "cpu"), None)


def copy_ceiling(here: str, there: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A plain copy between the devices in one process: what the link gives."""
    import torch

    rows = []
    for size in sizes:
        source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=there)
        target = torch.empty(size, dtype=torch.uint8, device=here, pin_memory=here == "cpu")
        times = []
        for _ in range(12):
            torch.cuda.synchronize(here if here != "cpu" else there)
            start = time.perf_counter()
            target.copy_(source)
            for device in {here, there} - {"cpu"}:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        rows.append(row("copy", Point(here, there, "copy", size), times[2:]))
        print(f"copy   {here}<-{there} {size:>11,} B  {rows[-1]['GB_per_s']:,.1f} GB/s", flush=True)
    return rows
