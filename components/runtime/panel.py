"""What stands around every panel: its connections, its place in discovery, its orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import msgspec
from prometheus_client import Gauge

from components.config import Topology
from components.discovery import Registration, Registry
from components.messaging import Bus, Context, Operation, Service, operation
from components.protocol import VERSION, Instance, Role, Status, StatusRequest, subject
from components.runtime.directory import directory
from components.runtime.peers import Peers
from components.telemetry.metrics import REGISTRY
from components.telemetry.ready import announce_ready

log = logging.getLogger(__name__)

_LEASE_SECONDS = 5.0

_REFUSED = Gauge(
    "triptych_discovery_refused_entries",
    "Entries in etcd that are skipped now: what they say cannot be an instance of this deployment.",
    ["role"],
    registry=REGISTRY,
)


class Panel:
    """One running instance of a role. Create with ``open``."""

    def __init__(self, role: Role, id: str, topology: Topology, bus: Bus, registry: Registry) -> None:
        self.role = role
        self.id = id
        self.bus = bus
        self.registry = registry
        self.subject = subject(topology.namespace, role, id)
        self._namespace = topology.namespace
        self._model = topology.model.name
        self._drain_seconds = topology.drain_seconds
        self._peers: dict[Role, Peers] = {}
        self._service: Service | None = None
        self._registration: Registration | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, role: Role, topology: Topology, instance: str | None = None) -> AsyncIterator[Self]:
        """Connected to NATS and etcd; on the way out it leaves, drains and disconnects.

        ``instance`` is the id to use; a fresh one if it is None. Raises ``ConnectionError``, or ``InstanceTaken``.
        """
        id = instance or f"{role}-{secrets.token_hex(4)}"
        bus = await Bus.connect(topology.nats.addresses, name=id, version=VERSION)
        try:
            registry = await Registry.connect(topology.etcd.addresses, topology.namespace)
            try:
                if instance is not None:
                    await registry.until_free(role, instance)
                panel = cls(role, id, topology, bus, registry)
                try:
                    yield panel
                finally:
                    await panel.leave()
            finally:
                await registry.close()
        finally:
            await bus.close()

    async def serve(
        self,
        operations: Mapping[str, Operation[Any]],
        *,
        capacity: int = 1,
        limit: int | None = None,
        revision: str = "",
        engine: str = "",
        max_context: int = 0,
        longest_token: int = 0,
        held: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """Answer ``operations`` and ``status``, then become discoverable, then say that this instance is ready.

        ``capacity`` is how many requests it works on at once, for others to know. More than ``limit`` at once, waiting
        ones included, are refused as ``overloaded``; with None the panel bounds itself. ``held`` is for ``status``.

        Raises ``ValueError`` for an id or a host name that the other panels would not take.
        """
        instance = Instance(
            role=self.role,
            id=self.id,
            subject=self.subject,
            model=self._model,
            revision=revision,
            engine=engine,
            capacity=capacity,
            max_context=max_context,
            longest_token=longest_token,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        value = msgspec.json.encode(instance)
        # What others would skip must not wait for requests that never come.
        directory(self._namespace, self.role, self._model)(self.id, value)

        async def status(request: StatusRequest, context: Context) -> Status:
            return Status(held=held())

        operations = {**operations, "status": operation(StatusRequest, status, inner=True)}
        # What was imported and loaded stays as long as the process: 390,000 objects beside torch. Looking through them
        # holds the interpreter for 160 ms of CPU time, which on a busy machine is more than a second.
        gc.collect()
        gc.freeze()
        self._service = await self.bus.serve(self.subject, stage=self.role, operations=operations, capacity=limit)
        self._registration = await self.registry.register(self.role, self.id, value, ttl=_LEASE_SECONDS)
        log.info("ready role=%s id=%s pid=%d", self.role, self.id, instance.pid)
        announce_ready()

    async def peers(self, role: Role, revision: str = "") -> Peers:
        """The live instances of another role, with ``revision`` only those; asked twice, the same object."""
        if role not in self._peers:
            view = await self.registry.watch(role, directory(self._namespace, role, self._model, revision))
            _REFUSED.labels(role).set_function(lambda: len(view.refused))
            self._peers.setdefault(role, Peers(self.bus, role, view))
        return self._peers[role]

    async def until_stopped(self) -> None:
        """Waits until this task is cancelled, which is how a role is stopped; then leaves and drains.

        So whatever the caller opened inside ``Panel.open`` is still there for the requests that finish now.
        """
        try:
            await asyncio.Event().wait()
        finally:
            await self.leave()

    async def leave(self) -> None:
        """Leave discovery, refuse new requests, finish the running ones for at most ``drain_seconds``."""
        registration, self._registration = self._registration, None
        service, self._service = self._service, None
        if registration is not None:
            await registration.close()
        if service is not None:
            await service.drain(self._drain_seconds)
            log.info("drained role=%s id=%s", self.role, self.id)
