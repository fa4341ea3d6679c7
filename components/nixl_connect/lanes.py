"""Which lane does each pair of devices get, and how fast is it? Measured, because a fallback raises no error.

``Connector.self_test`` starts a second process that exposes memory of each device, reads and writes it, and names every
lane that runs in software, with what to do about it. Memory comes from the CUDA driver: no torch is needed.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import mmap
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import cuda
from .descriptor import Descriptor
from .device import Device
from .errors import BackendFailed, DeviceUnavailable
from .record import RdmaMetadata
from .states import OperationKind

if TYPE_CHECKING:
    from .connector import Connector

logger = logging.getLogger(__name__)
SMALL, LARGE = 64 << 10, 32 << 20
SOFTWARE_GB_PER_S = 2.0
"""Below this a lane with a GPU at either end is a software path: those give 0.4 to 0.9, the slowest real one above
5."""
WATCHED_BYTES = 4 << 20
WATCHED_IN_A_ROW = 3
"""The first transfer of a pair, and of each region, opens connections and maps memory: it is slow on every lane."""
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Lane:
    """What one direction of one device pair gave: the median time of a small transfer, the best rate of a large one."""

    kind: str
    """``read`` or ``write``, by the side named ``local``"""
    local: str
    remote: str
    name: str
    """As in the counters: ``cpu-cuda+staged``"""
    microseconds: float
    gb_per_s: float
    software: bool
    advice: tuple[str, ...]


def is_software(devices: Iterable[str], gb_per_s: float) -> bool:
    """A rate too low for hardware, where a GPU is at one end. Host memory has no such bound: its processor may be
    busy."""
    return gb_per_s < SOFTWARE_GB_PER_S and any(device != "cpu" for device in devices)


def advice() -> tuple[str, ...]:
    """Known reasons for a software path that can be seen from here, each with its remedy."""
    found = []
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if "expandable_segments:true" in os.environ.get(name, "").lower():
            found.append(f"{name} asks for expandable_segments, whose memory cuda_ipc cannot share: set it to False")
    tls = os.environ.get("UCX_TLS", "all")
    if tls not in ("all", "") and "cuda" not in tls and not tls.startswith("^"):
        found.append(f"UCX_TLS={tls} leaves CUDA out: add 'cuda' to it")
    if os.environ.get("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "y").lower() not in ("y", "yes", "1", "on", "try"):
        found.append("UCX_CUDA_IPC_ENABLE_GET_ZCOPY is off, and without NVLink no READ uses cuda_ipc: set it to y")
    found.append(
        "both processes must see both GPUs (CUDA_VISIBLE_DEVICES), share a PID and an IPC namespace (docker --pid=host "
        "--ipc=host), and make their Connector with device='cuda:N' before any peer is known"
    )
    return tuple(found)


class LaneWatch:
    """Looks at every large transfer, and says once for each kind and lane that it runs in software: nothing else
    would."""

    def __init__(self) -> None:
        self._warned: set[tuple[OperationKind, str]] = set()
        self._slow: Counter[tuple[OperationKind, str]] = Counter()

    def saw(self, kind: OperationKind, lane: str, devices: Iterable[Device], size: int, seconds: float) -> None:
        which, rate = (kind, lane), size / seconds / 1e9
        if size < WATCHED_BYTES or which in self._warned:
            return
        self._slow[which] = self._slow[which] + 1 if is_software(map(str, devices), rate) else 0
        if self._slow[which] == WATCHED_IN_A_ROW:
            self._warned.add(which)
            logger.warning("%s %s at %.2f GB/s is a software path. %s", kind.name, lane, rate, "; ".join(advice()))


def allocate(device: Device, size: int) -> Descriptor:
    """Touched memory that lives as long as the descriptor, or on a GPU as long as the process."""
    if device.is_host:
        memory = mmap.mmap(-1, size)
        memory.write(bytes(size))
        return Descriptor(memoryview(memory))
    driver = cuda.driver()
    if driver is None or device.id >= driver.device_count:
        raise DeviceUnavailable(f"{device} is not there")
    driver.make_current(device)
    return Descriptor((driver.allocate(size), size, device, None))


async def measure(connector: Connector, devices: Sequence[str]) -> list[Lane]:
    """Every ordered pair of ``devices``, READ and WRITE. Takes a second or two, most of it the other process's
    start."""
    lanes = []
    other = await asyncio.to_thread(_Other, devices)
    try:
        for local in devices:
            buffer = await asyncio.to_thread(allocate, Device(local), LARGE)
            await buffer.register_memory(connector)
            for remote in devices:
                for kind in (OperationKind.READ, OperationKind.WRITE):
                    lanes.append(await _measure(connector, other, buffer, kind, local, remote))
            await buffer.deregister_memory(connector)
    finally:
        await asyncio.to_thread(other.stop)
    for lane in lanes:
        report = logger.warning if lane.software else logger.info
        remedy = f": a software path. {'; '.join(lane.advice)}" if lane.software else ""
        report(
            "%s %s<->%s: %.1f GB/s, %.0f us%s",
            lane.kind,
            lane.local,
            lane.remote,
            lane.gb_per_s,
            lane.microseconds,
            remedy,
        )
    return lanes


async def _measure(
    connector: Connector, other: _Other, buffer: Descriptor, kind: OperationKind, local: str, remote: str
) -> Lane:
    seconds: dict[int, list[float]] = {SMALL: [], LARGE: []}
    name = ""
    for size, rounds in ((SMALL, 6), (LARGE, 4)):
        for _ in range(rounds):
            record = await asyncio.to_thread(other.record, remote, kind, size)
            part = buffer.part(0, size)
            start = time.perf_counter()
            if kind is OperationKind.READ:
                operation: Any = await connector.begin_read(record, part, deadline=_START_S)
            else:
                operation = await connector.begin_write(part, record, deadline=_START_S)
            await operation.wait_for_completion()
            seconds[size].append(time.perf_counter() - start)
            name = operation.lane
    rate = LARGE / min(seconds[LARGE]) / 1e9
    software = is_software((local, remote), rate)
    microseconds = sorted(seconds[SMALL])[len(seconds[SMALL]) // 2] * 1e6
    return Lane(
        kind.name.lower(),
        local,
        remote,
        name,
        round(microseconds, 1),
        round(rate, 3),
        software,
        advice() if software else (),
    )


class _Other:
    """The second process: a line of JSON in, a record out."""

    def __init__(self, devices: Sequence[str]) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__package__}.lanes import main; main()", *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def record(self, device: str, kind: OperationKind, size: int) -> RdmaMetadata:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([device, int(kind), size]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BackendFailed("the self-test's second process ended") from None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print too
                return RdmaMetadata.model_validate_json(line)
        raise BackendFailed("the self-test's second process ended")

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


async def _expose(devices: Sequence[str]) -> None:
    from .connector import Connector

    gpu = next((device for device in devices if device != "cpu"), None)
    loop = asyncio.get_running_loop()
    async with Connector(device=gpu) as connector:
        buffers = {}
        for device in devices:
            buffers[device] = allocate(Device(device), LARGE)
            await buffers[device].register_memory(connector)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            device, kind, size = json.loads(line)
            part = buffers[device].part(0, size)
            create = connector.create_readable if kind == OperationKind.READ else connector.create_writable
            operation = await create(part, lease=_START_S)
            print(operation.metadata().model_dump_json(), flush=True)


def main() -> None:
    # The parent may be killed: this process must not outlive it.
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    asyncio.run(_expose(sys.argv[1:]))


if __name__ == "__main__":
    main()
