"""``Connector``: one NIXL agent for this process, and the four verbs."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self, TypeVar

from . import cuda
from .core import Core
from .counters import Counters
from .descriptor import Buffers, Descriptor, as_list
from .device import Device
from .errors import BackendFailed, ConnectorClosed, DeadlineExceeded, InvalidBuffer, TransferError, copy, typed
from .issue import issue
from .lanes import Lane, measure
from .lease import Exposure
from .operations import (
    ActiveOperation,
    PassiveOperation,
    ReadableOperation,
    ReadOperation,
    WritableOperation,
    WriteOperation,
)
from .owner import OwnerThread
from .parts import lane_of, match
from .pool import Pool, Slab
from .record import RdmaMetadata, check_own
from .registration import Hold
from .states import OperationKind, OperationStatus
from .wire import MAX_SECONDS

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = TypeVar("P", bound=PassiveOperation)
A = TypeVar("A", bound=ActiveOperation)
DEFAULT_LEASE_S = 30.0
DEFAULT_DEADLINE_S = 30.0
CLOSE_S = 5.0
"""How long ``close`` waits for transfers that cannot be recalled."""
THREAD_S = 5.0
"""And how long after that for the thread: disconnecting and unregistering take a while."""


class _Pump:
    """Turns the core once it is there: the agent is made on the owner thread, by the first call that needs it."""

    core: Core | None = None

    def poll(self) -> bool:
        return self.core is not None and self.core.poll()

    def patience(self) -> tuple[float, float]:
        return (1.0, 60.0) if self.core is None else self.core.patience()

    def abandon(self, why: str) -> None:
        core, self.core = self.core, None
        if core is not None:
            core.abandon(why)


class Connector:
    """Moves bytes between this process's memory and that of others.

    name      who this is to others, ``[A-Za-z0-9._:-]``; unique by default. A restart under the same name is told
              apart.
    backends  NIXL backends, in order of preference: ``("UCX",)``, ``("UCX", "LIBFABRIC")``.
    device    the CUDA device whose context the agent is made under. None: the one torch uses already, else host
              memory only.
    ucx       UCX settings without prefix, ``{"TLS": "rc,cuda,tcp", "NET_DEVICES": "mlx5_0:1"}``. Keep ``tcp`` in
              ``TLS``.
              They hold for the process; a variable that is set in the environment already wins.
    on_failure
              called with the thread's name and the error when the connector's thread has ended by one. Every operation
              has failed by then (``ConnectorClosed``), and the cause is logged; a service should end its process. Runs
              on that thread.

    The agent is made by the first operation, on a thread of its own; nothing here blocks the event loop. A connector
    belongs to the loop that uses it. ``async with Connector() as connector`` closes it in the end.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        backends: Sequence[str] = ("UCX",),
        device: str | Device | None = None,
        ucx: Mapping[str, str] | None = None,
        on_failure: Callable[[str, BaseException], object] | None = None,
    ) -> None:
        self._hostname = socket.gethostname()
        if name is None:
            host = re.sub(r"[^A-Za-z0-9.-]", "-", self._hostname)[:128] or "host"
            name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        if re.fullmatch(r"[A-Za-z0-9._:-]{1,200}", name) is None:
            raise ValueError(f"not a connector's name: {name!r}")
        self._name = name
        self._generation = secrets.token_hex(8)
        self._backends = tuple(backends)
        self._device = None if device is None else Device(device)
        self._ucx = dict(ucx or {})
        self._on_failure = on_failure
        self._pump = _Pump()
        self._owner: OwnerThread | None = None
        self._pools: list[Pool] = []
        self._lanes: tuple[Lane, ...] = ()
        self._closed = False

    # who this is

    @property
    def name(self) -> str:
        return self._name

    @property
    def hostname(self) -> str:
        return self._hostname

    @property
    def identity(self) -> str:
        """``name@generation``: what a record is bound to with ``reader=``."""
        return f"{self._name}@{self._generation}"

    @property
    def is_cuda_available(self) -> bool:
        """Is there a usable GPU? Asks the driver; starts nothing."""
        return cuda.driver() is not None

    # the four verbs

    async def create_readable(
        self,
        buffers: Buffers,
        *,
        lease: float = DEFAULT_LEASE_S,
        readers: int | None = 1,
        reader: str | None = None,
        info: Mapping[str, str] | None = None,
    ) -> ReadableOperation:
        """Expose memory for reading. ``metadata()`` of the result is the record for the reader.

        lease    seconds until the memory comes back unless a reader claims it or ``renew`` is called
        readers  how many reads complete the operation; None: any number until the lease ends
        reader   ``identity`` of the only peer that may use the record. Agent metadata is left out when it has it
                 already
        info     the application's part of the record: ``{"model_revision": "…", "layout": "1"}``

        The bytes must be final; on a GPU the kernels that write them must have finished. Raises ``InvalidBuffer``,
        ``BackendFailed``, ``DeviceUnavailable``, ``ConnectorClosed``.
        """
        if readers is not None and readers < 1:
            raise ValueError(f"readers is {readers}: one or more, or None for any number")
        operation = ReadableOperation(self._do, self._thread().deliver, as_list(buffers))
        return await self._expose(operation, lease, readers, reader, info)

    async def create_writable(
        self,
        buffers: Buffers,
        *,
        lease: float = DEFAULT_LEASE_S,
        reader: str | None = None,
        info: Mapping[str, str] | None = None,
    ) -> WritableOperation:
        """Expose memory for one peer to write; completes when all of it has landed. Arguments and errors as above."""
        listed = as_list(buffers)
        if not all(buffer.writable for buffer in listed):
            raise InvalidBuffer("a read-only buffer cannot be written by a peer")
        return await self._expose(WritableOperation(self._do, self._thread().deliver, listed), lease, 1, reader, info)

    async def begin_read(
        self,
        metadata: RdmaMetadata,
        local: Buffers,
        *,
        deadline: float | None = None,
        expect: Mapping[str, str] | None = None,
    ) -> ReadOperation:
        """Begin to read a peer's memory into ``local``: one local buffer for each of the record's, of the same bytes.

        The transfer is on its way when this returns. ``deadline`` is in seconds from now (default 30). ``expect``
        names items that the record's ``info`` must have. Raises ``BadRecord``, ``InvalidBuffer``, ``PeerUnknown``,
        ``PeerLost``…
        """
        buffers = as_list(local)
        metadata.check(OperationKind.READ, reader=self.identity, expect=expect)
        match(metadata, buffers)
        operation = ReadOperation(self._do, self._thread().deliver, buffers, metadata, lane_of(buffers, metadata))
        return self._begin(operation, metadata, deadline, staged=False)

    async def begin_write(
        self,
        local: Buffers,
        metadata: RdmaMetadata,
        *,
        deadline: float | None = None,
        staged: bool = False,
        expect: Mapping[str, str] | None = None,
    ) -> WriteOperation:
        """Begin to write ``local`` into a peer's memory. With ``staged`` nothing moves until
        ``operation.post(indices)``.

        Arguments and errors as for ``begin_read``.
        """
        buffers = as_list(local)
        metadata.check(OperationKind.WRITE, reader=self.identity, expect=expect)
        match(metadata, buffers)
        operation = WriteOperation(
            self._do, self._thread().deliver, buffers, metadata, lane_of(buffers, metadata), staged
        )
        return self._begin(operation, metadata, deadline, staged=staged)

    # memory

    async def create_pool(self, size_bytes: int, device: str | Device = "cpu") -> Pool:
        """A slab of that many bytes, prefaulted, registered until ``close``. Raises as ``create_readable``."""
        where = Device(device)
        if self._device is None and not where.is_host and self._pump.core is None:
            self._device = where
        slab = await asyncio.to_thread(Slab, size_bytes, where, self._device or cuda.device_in_use())
        await self.keep_registered(slab.descriptor)
        pool = Pool(slab)
        self._pools.append(pool)
        return pool

    def keep_registered(self, descriptor: Descriptor) -> Awaitable[None]:
        """See ``Descriptor.register_memory``."""
        return self._call(lambda core: core.registry.keep(descriptor))

    def end_registered(self, descriptor: Descriptor) -> Awaitable[None]:
        """See ``Descriptor.deregister_memory``."""
        return self._call(lambda core: core.registry.unkeep(descriptor))

    # life

    async def start(self) -> None:
        """Make the agent now (about half a second) rather than in the first operation."""
        await self._call(lambda core: None)

    async def self_test(self, devices: Sequence[str] | None = None) -> list[Lane]:
        """Measure READ and WRITE between every two of ``devices`` (default: the host, and this connector's GPU),
        against a process started for it. Logs each lane, warns of software paths; ``counters().lanes`` keeps the
        result."""
        if devices is None:
            await self.start()
            gpu = self._pump.core.agent.device if self._pump.core is not None else None
            devices = ("cpu",) if gpu is None else ("cpu", str(gpu))
        self._lanes = tuple(await measure(self, [str(Device(device)) for device in devices]))
        return list(self._lanes)

    def counters(self) -> Counters:
        """A snapshot of gauges and totals; from any thread, without waiting."""
        size, used = sum(pool.size for pool in self._pools), sum(pool.used for pool in self._pools)
        core = self._pump.core
        found = Counters(pool_bytes=size, pool_used_bytes=used) if core is None else core.counters(size, used)
        return replace(found, lanes=self._lanes)

    async def close(self) -> None:
        """End every operation (``ConnectorClosed``, peers are told), wait a little for what cannot be recalled,
        disconnect, unregister. A second call waits for the first. Raises ``BackendFailed`` when NIXL does not let go of
        the thread; its registrations and connections then last as long as the process."""
        owner, self._closed = self._owner, True
        if owner is None:
            return
        until = time.monotonic() + CLOSE_S

        def watch() -> None:
            core = self._pump.core
            if core is None or core.idle() or time.monotonic() > until:
                owner.stop()
            else:
                owner.at(time.monotonic() + 1e-3, watch)

        def begin() -> None:
            if self._pump.core is not None:
                self._pump.core.close()
            watch()

        owner.submit(begin, lambda _: owner.stop())
        if not await asyncio.to_thread(owner.join, CLOSE_S + THREAD_S):
            logger.error("%s has not ended. It is at\n%s", owner.name, owner.where())
            raise BackendFailed(
                f"{owner.name} has not ended after {CLOSE_S + THREAD_S:.0f} s: a call hangs (see the log)"
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            await self.close()
        except BackendFailed:
            if error is None:
                raise  # else that error says more, and this one is logged

    def __repr__(self) -> str:
        return f"Connector({self.identity!r})"

    # inside

    def _thread(self) -> OwnerThread:
        if self._closed:
            raise ConnectorClosed("the connector is closed")
        if self._owner is None:
            self._owner = OwnerThread(self._name, self._pump, self._on_failure)
        if self._owner.failure is not None:
            raise self._owner.closed()
        return self._owner

    def _call(self, function: Callable[[Core], T]) -> asyncio.Future[T]:
        owner = self._thread()
        return owner.call(lambda: function(self._started(owner)))

    def _do(self, task: Callable[[Core], None], failed: Callable[[Exception], None]) -> bool:
        def run() -> None:
            if self._pump.core is not None:
                task(self._pump.core)

        return self._owner is not None and self._owner.submit(run, failed)

    def _started(self, owner: OwnerThread) -> Core:
        if self._pump.core is None:
            device = self._device or cuda.device_in_use()
            self._pump.core = Core(
                self.identity, self._backends, device, self._ucx, owner.at, owner.submit, owner.after
            )
        return self._pump.core

    async def _expose(
        self,
        operation: P,
        lease: float,
        readers: int | None,
        reader: str | None,
        info: Mapping[str, str] | None,
    ) -> P:
        if not 0.0 < lease < MAX_SECONDS:
            raise ValueError(f"a lease of {lease} seconds")

        check_own(operation.buffers, reader, info or {})
        owner = self._thread()
        hold = Hold(operation.buffers)

        def expose() -> None:
            try:
                core = self._started(owner)
                hold.register(core.registry)
                record = issue(
                    core, self._name, self._generation, operation.kind, hold, lease, reader=reader, info=info or {}
                )
                operation.expose_as(record)
                core.leases.expose(Exposure(record, hold, time.monotonic() + lease, readers, operation))
            except Exception as error:
                hold.release()
                if not isinstance(error, TransferError):
                    logger.exception("memory could not be exposed")
                # Not the one that is raised: its frames hold the operation.
                operation.ended(OperationStatus.ERRORED, copy(typed(error)), released=True)
                raise typed(error) from None

        try:
            await owner.call(expose)
        except ConnectorClosed:
            hold.release()
            raise
        except asyncio.CancelledError:
            operation.cancel()  # the caller never gets it: nobody else could end it
            raise
        return operation

    def _begin(self, operation: A, metadata: RdmaMetadata, deadline: float | None, *, staged: bool) -> A:
        """Hand the transfer to the owner thread, which posts it at once. Not awaited: a round trip to that thread costs
        as much as moving a megabyte, and what it finds wrong is the operation's error."""
        seconds = DEFAULT_DEADLINE_S if deadline is None else deadline
        if not 0.0 < seconds < MAX_SECONDS:
            raise DeadlineExceeded(f"no time left: {seconds} s") if seconds <= 0 else ValueError(f"{seconds} s")
        until = time.monotonic() + seconds

        owner = self._thread()
        hold = Hold(operation.buffers)

        def begin() -> None:
            try:
                core = self._started(owner)
                peer = core.peers.from_record(metadata)
                hold.register(core.registry)
                transfer = core.transfers.begin(metadata, peer, hold, until, operation, operation.lane, staged)
            except TransferError as error:
                failed(error)
            else:
                if not transfer.over:
                    operation.transfer = transfer

        def failed(error: Exception) -> None:
            hold.release()
            operation.ended(OperationStatus.ERRORED, typed(error), released=True)

        if not owner.submit(begin, failed):
            hold.release()
            raise owner.closed()
        return operation
