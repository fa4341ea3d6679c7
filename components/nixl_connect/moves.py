"""How the bytes of one part of a transfer go: straight by NIXL, or in steps through a bounce buffer. Owner thread only.

Between host memory of one process and device memory of another on the same node UCX has only a slow lane (0.9 GB/s
between H200 and host; measured). So such a part goes by NIXL between memories of the *same* kind, and by a CUDA copy
within this process, through a few chunks that take turns: while one is copied, the next is on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import cuda
from .agent import Agent, Progress, Span
from .device import Device
from .errors import DeviceUnavailable, TransferError
from .states import OperationKind

CHUNK = 8 << 20
"""Bytes of a bounce buffer: long enough for full speed of NVLink and PCIe, short enough that the first copy starts
soon."""
CHUNKS = 4


class Move(Protocol):
    """Bytes to be moved, then under way. Over when ``check`` says something else than ``MOVING`` or raises."""

    def begin(self) -> None:
        """Post. Raises what NIXL or CUDA refuses; then nothing is under way."""

    def check(self) -> Progress: ...

    def stop(self) -> None:
        """Begin nothing new; what is posted goes on."""

    def release(self) -> None:
        """After the end, instead of the beginning, or when the process gives it up."""


class Direct:
    """One NIXL transfer."""

    def __init__(self, agent: Agent, handle: Any, peer: str) -> None:
        self._agent, self._handle, self._peer = agent, handle, peer
        self._progress = Progress.MOVING

    def begin(self) -> None:
        self._progress = self._agent.post(self._handle, self._peer)

    def check(self) -> Progress:
        if self._progress is Progress.MOVING:
            self._progress = self._agent.check(self._handle, self._peer)
        return self._progress

    def stop(self) -> None:
        return None

    def release(self) -> None:
        self._agent.release(self._handle, self._peer)


@dataclass(slots=True)
class Piece:
    """Bytes that are contiguous here and there, and not more than a chunk."""

    here: int
    there: Span
    size: int


@dataclass(slots=True)
class Chunk:
    """A bounce buffer and what it is busy with."""

    address: int
    event: Any
    pieces: list[Piece] = field(default_factory=list)
    handle: Any = None


class Copier(Protocol):
    """Copies within this process that run by themselves."""

    def chunk(self, size: int) -> Chunk:
        """A bounce buffer of the kind this copier was made for."""

    def copy(self, target: int, source: int, size: int) -> None: ...

    def mark(self, event: Any) -> None:
        """Note the copies begun so far on ``event``."""

    def passed(self, event: Any) -> bool:
        """Are they done?"""

    def free(self, chunk: Chunk) -> None: ...


class CudaCopier:
    """Bounce buffers on ``bounce`` (pinned when that is the host), copies on a stream of their own. Made and used with
    the GPU's context current."""

    def __init__(self, bounce: Device) -> None:
        found = cuda.driver()
        if found is None:
            raise DeviceUnavailable("no CUDA driver")
        self._driver, self._on_host = found, bounce.is_host
        self._stream = self._driver.stream()

    def chunk(self, size: int) -> Chunk:
        address = self._driver.allocate_pinned(size) if self._on_host else self._driver.allocate(size)
        return Chunk(address, self._driver.event())

    def copy(self, target: int, source: int, size: int) -> None:
        self._driver.copy(target, source, size, self._stream)

    def mark(self, event: Any) -> None:
        self._driver.record(event, self._stream)

    def passed(self, event: Any) -> bool:
        return self._driver.passed(event)

    def free(self, chunk: Chunk) -> None:
        (self._driver.free_pinned if self._on_host else self._driver.free)(chunk.address)


class Bounce:
    """The bounce buffers of one kind: made and registered once, lent to one staged move after the other."""

    def __init__(self, agent: Agent, gpu: Device, bounce: Device, make: Callable[[Device], Copier]) -> None:
        self._agent, self._gpu, self.device = agent, gpu, bounce
        self.make_current()
        self.copier = copier = make(bounce)
        self.free: deque[Chunk] = deque(copier.chunk(CHUNK) for _ in range(CHUNKS))
        self._all = list(self.free)
        self._registrations = [agent.register((chunk.address, CHUNK, bounce.id), bounce) for chunk in self._all]

    def make_current(self) -> None:
        self._agent.make_current(self._gpu)

    def close(self) -> None:
        self.make_current()
        for registration in self._registrations:
            self._agent.deregister(registration)
        for chunk in self._all:
            self.copier.free(chunk)


class Staged:
    """A move through bounce buffers. READ: NIXL into a chunk, then copies out of it. WRITE: copies into it, then
    NIXL."""

    def __init__(
        self, agent: Agent, bounce: Bounce, kind: OperationKind, pieces: list[Piece], there: Device, peer: str
    ) -> None:
        self._agent, self._bounce, self._kind, self._there, self._peer = agent, bounce, kind, there, peer
        self._waiting = _packed(pieces)
        self._moving: list[Chunk] = []
        self._copying: list[Chunk] = []
        self._stopped = False
        self._error: TransferError | None = None

    def begin(self) -> None:
        self.check()

    def check(self) -> Progress:
        self._bounce.make_current()
        read = self._kind is OperationKind.READ
        for chunk in [chunk for chunk in self._moving if self._landed(chunk)]:
            self._moving.remove(chunk)
            if read and not self._stopped:
                self._copy(chunk)
            else:
                self._give_back(chunk)
        for chunk in [chunk for chunk in self._copying if self._bounce.copier.passed(chunk.event)]:
            self._copying.remove(chunk)
            if read or self._stopped:
                self._give_back(chunk)
            else:
                self._transfer(chunk)
        while self._waiting and self._bounce.free:
            chunk = self._bounce.free.popleft()
            chunk.pieces = self._waiting.popleft()
            (self._transfer if read else self._copy)(chunk)
        if self._moving or self._copying or self._waiting:
            return Progress.MOVING
        if self._error is not None:
            raise self._error
        return Progress.FAILED if self._stopped else Progress.LANDED

    def stop(self) -> None:
        self._stopped = True
        self._waiting.clear()

    def release(self) -> None:
        """Nothing is left to free after the end. Given up before it, its chunks are never lent again."""

    def _landed(self, chunk: Chunk) -> bool:
        """Is NIXL done with the chunk? An error is kept until all chunks are, so that each of them comes back."""
        try:
            progress = self._agent.check(chunk.handle, self._peer)
            if progress is Progress.MOVING:
                return False
            self._agent.release(chunk.handle, self._peer)
        except TransferError as error:
            self._error, progress = error, Progress.FAILED
        if progress is Progress.FAILED:
            self.stop()
        return True

    def _transfer(self, chunk: Chunk) -> None:
        here: list[Span] = []
        offset = 0
        for piece in chunk.pieces:
            here.append((chunk.address + offset, piece.size, self._bounce.device.id))
            offset += piece.size
        there = [piece.there for piece in chunk.pieces]
        try:
            chunk.handle = self._agent.prepare(self._kind, here, self._bounce.device, there, self._there, self._peer)
            self._agent.post(chunk.handle, self._peer)
        except TransferError as error:
            self._error = error
            self.stop()
            self._give_back(chunk)
        else:
            self._moving.append(chunk)

    def _copy(self, chunk: Chunk) -> None:
        offset = 0
        for piece in chunk.pieces:
            inside = chunk.address + offset
            target, source = (piece.here, inside) if self._kind is OperationKind.READ else (inside, piece.here)
            self._bounce.copier.copy(target, source, piece.size)
            offset += piece.size
        self._bounce.copier.mark(chunk.event)
        self._copying.append(chunk)

    def _give_back(self, chunk: Chunk) -> None:
        chunk.pieces, chunk.handle = [], None
        self._bounce.free.append(chunk)


def _packed(pieces: list[Piece]) -> deque[list[Piece]]:
    """Pieces grouped so that each group fills, but does not overflow, a chunk."""
    groups: deque[list[Piece]] = deque()
    room = 0
    for piece in pieces:
        if piece.size > room:
            groups.append([])
            room = CHUNK
        groups[-1].append(piece)
        room -= piece.size
    return groups


def _cut(local: Sequence[Span], remote: Sequence[Span]) -> list[Piece]:
    pieces = []
    for (here, size, _), (there, _, index) in zip(local, remote, strict=True):
        for offset in range(0, size, CHUNK):
            part = min(CHUNK, size - offset)
            pieces.append(Piece(here + offset, (there + offset, part, index), part))
    return pieces


def needs_staging(local: Device, remote: Device, same_host: bool) -> bool:
    """Between hosts the NIC reaches both kinds of memory; on one host it is the slow lane."""
    return same_host and local.is_host is not remote.is_host


class Mover:
    """Chooses. ``copier`` makes what copies, for bounce buffers of the device it is given."""

    def __init__(self, agent: Agent, copier: Callable[[Device], Copier] = CudaCopier) -> None:
        self._agent, self._copier = agent, copier
        self._bounces: dict[tuple[Device, Device], Bounce] = {}

    def prepare(
        self,
        kind: OperationKind,
        local: Sequence[Span],
        here: Device,
        remote: Sequence[Span],
        there: Device,
        peer: str,
        same_host: bool,
    ) -> Move:
        """A move that has not begun. Raises what NIXL or CUDA refuses."""
        if not needs_staging(here, there, same_host):
            return Direct(self._agent, self._agent.prepare(kind, local, here, remote, there, peer), peer)
        bounce = self._bounce(here, there)
        return Staged(self._agent, bounce, kind, _cut(local, remote), there, peer)

    def close(self) -> None:
        for bounce in self._bounces.values():
            bounce.close()
        self._bounces.clear()

    def _bounce(self, here: Device, there: Device) -> Bounce:
        """Bounce buffers of the kind of memory that is *there*; on our own device when that is a GPU."""
        own = here if not here.is_host else self._agent.device
        if own is None:
            raise DeviceUnavailable(f"to exchange host memory with {there} fast, this connector needs a CUDA device")
        place = Device("cpu") if there.is_host else own
        found = self._bounces.get((own, place))
        if found is None:
            found = self._bounces[own, place] = Bounce(self._agent, own, place, self._copier)
        return found
