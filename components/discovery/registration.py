"""One instance's entry in etcd, kept alive by a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading

from components.discovery.etcd import Etcd, EtcdLost
from components.discovery.worker import Worker

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


class Registration:
    """Made by ``Registry.register``."""

    def __init__(self, etcd: Etcd, key: str, value: bytes, ttl: float) -> None:
        self.key = key
        self._etcd = etcd
        self._ttl = ttl
        self._value = value
        self._written: bytes | None = None
        self._lease: int | None = None
        self._changed = asyncio.Event()
        self._condition = threading.Condition()
        self._stopping = False
        self._worker = Worker(self._run, f"lease {key}")
        self._worker.start()

    async def update(self, value: bytes) -> None:
        """Replace the value; returns once etcd has it. Raises ``DiscoveryEnded``."""
        with self._condition:
            self._value = value
            self._condition.notify()
        await self.written()

    async def written(self) -> None:
        """Returns once etcd has the newest value. Raises ``DiscoveryEnded``."""
        while self._written != self._value:
            self._changed.clear()
            await self._worker.unless_ended(self._changed)

    async def close(self) -> None:
        """Take the entry away; if etcd is gone, its lease does so later."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        await self._worker.end()

    def _run(self) -> None:
        pause = self._ttl / 3
        available = True
        while not self._stopping:
            try:
                self._refresh()
                wait = pause
                if not available:
                    log.warning("etcd is back; %s is registered", self.key)
                available = True
            except EtcdLost as error:
                wait = _RETRY_SECONDS
                if available:
                    log.warning("etcd does not answer, trying again: %s", error)
                available = False
            with self._condition:
                if not self._stopping and (self._value == self._written or not available):
                    self._condition.wait(wait)
        self._leave()

    def _refresh(self) -> None:
        """Keep the lease, or take a new one if it has run out, and write what is not written."""
        if self._lease is not None and not self._etcd.keep(self._lease):
            log.warning("the lease of %s ran out; registering again", self.key)
            self._lease = None
        value = self._value
        if self._lease is None:
            # etcd counts whole seconds.
            self._lease = self._etcd.grant(max(1, round(self._ttl)))
            self._written = None
        elif self._written is not None and self._etcd.get(self.key) != self._written:
            log.warning("somebody else has changed %s in etcd; it is written again", self.key)
            self._written = None
        if self._written != value:
            self._etcd.put(self.key, value, self._lease)
            self._written = value
            self._worker.post(self._changed.set)

    def _leave(self) -> None:
        if self._lease is None:
            return
        try:
            self._etcd.revoke(self._lease)
        except EtcdLost as error:
            log.warning("%s stays in etcd until its lease ends: %s", self.key, error)
