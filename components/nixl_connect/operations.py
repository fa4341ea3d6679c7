"""What the application holds: four kinds of operation, alike in use.

Each is a context manager, plain or async. Leaving it early cancels; leaving it late does nothing. ``status`` only
looks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Self

from .descriptor import Descriptor
from .errors import InvalidBuffer, TransferError, bare, copy, typed
from .record import RdmaMetadata
from .states import OperationKind, OperationStatus, may_move
from .wire import MAX_SECONDS

if TYPE_CHECKING:
    from .core import Core
    from .transfer import Transfer

Do = Callable[[Callable[["Core"], None], Callable[[Exception], None]], bool]
"""Runs something on the owner thread soon; False when that has ended. The second is called if the first raises."""
Deliver = Callable[[asyncio.AbstractEventLoop, Callable[[], None]], None]
"""From the owner thread: runs something on an event loop soon."""


class Operation:
    """Common to all. Made by the connector, on its event loop."""

    kind: OperationKind

    def __init__(self, do: Do, deliver: Deliver, buffers: list[Descriptor]) -> None:
        self._do, self._deliver = do, deliver
        self.buffers = buffers
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []
        self._is_released = False
        self._status = OperationStatus.UNINITIALIZED
        self._error: TransferError | None = None
        self._began = time.perf_counter()
        self._seconds: float | None = None

    @property
    def status(self) -> OperationStatus:
        """Where it is now. Never starts, ends or waits for anything."""
        return self._status

    @property
    def error(self) -> TransferError | None:
        """Why it ended without completing; None while it runs and when it completed."""
        return self._error

    @property
    def bytes(self) -> int:
        """Bytes of all its buffers."""
        return sum(buffer.size for buffer in self.buffers)

    @property
    def seconds(self) -> float:
        """From its beginning to its end, or to now."""
        return time.perf_counter() - self._began if self._seconds is None else self._seconds

    def cancel(self) -> None:
        """End it, from any thread, at once; nothing happens if it has ended. Bytes already posted may still land: the
        buffers are free to be used for something else when ``wait_for_release`` returns, not before."""
        self._do(self._cancel, self._failed)

    async def wait_for_completion(self) -> Self:
        """Wait for the end. Raises the operation's ``TransferError`` unless it completed. Any number may wait;
        giving up waiting does not cancel the operation."""
        await self._until(lambda: self._status.is_terminal)
        self._raise_error()
        return self

    async def wait_for_release(self) -> None:
        """Wait until no transfer of this operation can touch the buffers any more, here or from the other side."""
        await self._until(lambda: self._is_released)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def _raise_error(self) -> None:
        # A copy each time: a traceback on the stored error would tie operation, frames and memory into a cycle.
        if self._error is not None:
            raise copy(self._error)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _cancel(self, core: Core) -> None:
        raise NotImplementedError

    # the owner thread's view

    def _failed(self, error: Exception) -> None:
        """Something asked of the owner thread for this operation raised. Who holds the memory then is not known."""
        self.ended(OperationStatus.ERRORED, typed(error), released=False)

    def moved(self, status: OperationStatus) -> None:
        if may_move(self._status, status):
            self._status = status

    def ended(self, status: OperationStatus, error: TransferError | None, *, released: bool) -> None:
        if not self._status.is_terminal:
            if error is not None:
                bare(error)
            self._seconds = time.perf_counter() - self._began
            self._error = error
            self._is_released = released
            self._status = status
            self._deliver(self._loop, self._wake)

    def released(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._deliver(self._loop, self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        await self._until(lambda: self._status.is_terminal)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._status.name} {self.bytes} bytes>"


class PassiveOperation(Operation):
    """An exposed buffer, waiting to be read or written."""

    _record: RdmaMetadata

    def expose_as(self, record: RdmaMetadata) -> None:
        self._record = record

    def metadata(self) -> RdmaMetadata:
        """The record to hand to the other side."""
        return self._record

    def renew(self, seconds: float) -> None:
        """Let the lease end ``seconds`` from now instead of earlier. Does nothing once the operation has ended."""
        if not 0.0 < seconds < MAX_SECONDS:
            raise ValueError(f"a lease of {seconds} seconds")
        self._do(lambda core: core.leases.renew(bytes.fromhex(self._record.notification_key), seconds), self._failed)

    def _cancel(self, core: Core) -> None:
        # Runs after what exposed it, which may have failed: then there is no record.
        if hasattr(self, "_record"):
            core.leases.cancel(bytes.fromhex(self._record.notification_key))


class ReadableOperation(PassiveOperation):
    """Memory that peers may read. Completes when ``readers`` of them have."""

    kind = OperationKind.READ


class WritableOperation(PassiveOperation):
    """Memory that one peer may write. Completes when every byte has landed."""

    kind = OperationKind.WRITE


class ActiveOperation(Operation):
    """A transfer that this side makes."""

    def __init__(self, do: Do, deliver: Deliver, buffers: list[Descriptor], record: RdmaMetadata, lane: str) -> None:
        super().__init__(do, deliver, buffers)
        self._record = record
        self._lane = lane
        self.transfer: Transfer | None = None

    @property
    def lane(self) -> str:
        """``<local memory>-<remote memory>``, such as ``cpu-cpu`` or ``cuda-cuda``."""
        return self._lane

    @property
    def remote(self) -> str:
        """Identity of the peer, ``name@generation``."""
        return self._record.identity

    def released(self) -> None:
        self.transfer = None  # the two hold each other, and the memory, until now
        super().released()

    def _cancel(self, core: Core) -> None:
        if self.transfer is not None:
            core.transfers.cancel(self.transfer)


class ReadOperation(ActiveOperation):
    kind = OperationKind.READ

    def results(self) -> list[Descriptor]:
        """The filled buffers. Raises the operation's error, or ``InvalidBuffer`` while it still runs."""
        self._raise_error()
        if self._status is not OperationStatus.COMPLETE:
            raise InvalidBuffer("the bytes have not all arrived: await wait_for_completion() first")
        return list(self.buffers)


class WriteOperation(ActiveOperation):
    """``post`` is for staged writes: nothing moves until it is told which buffers are ready."""

    kind = OperationKind.WRITE

    def __init__(
        self, do: Do, deliver: Deliver, buffers: list[Descriptor], record: RdmaMetadata, lane: str, staged: bool
    ) -> None:
        super().__init__(do, deliver, buffers, record, lane)
        self._staged = staged

    def post(self, indices: int | Iterable[int]) -> None:
        """These buffers hold their final bytes: send them. Cheap, and callable from any thread. Each index counts once;
        the operation completes when all have been posted and have landed. On a GPU the kernels that fill the buffers
        must have finished: NIXL knows nothing of streams."""
        ready = [indices] if isinstance(indices, int) else list(indices)
        if not self._staged:
            raise InvalidBuffer("only a write begun with staged=True is posted by hand")
        if any(not 0 <= index < len(self.buffers) for index in ready):
            raise InvalidBuffer(f"there are {len(self.buffers)} buffers, not index {max(ready, key=abs)}")
        self._do(lambda core: self._post(core, ready), self._failed)

    def _post(self, core: Core, ready: list[int]) -> None:
        if self.transfer is not None:
            core.transfers.post(self.transfer, ready)
