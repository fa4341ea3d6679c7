"""Who is there: a role's instances, kept up to date by a thread that watches etcd."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from components.discovery.etcd import CALM, Entry, Etcd, EtcdLost, Watch
from components.discovery.worker import Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS = 0.5
_REASON_LIMIT = 200
"""Characters of a reason: it may quote what a stranger wrote."""


@dataclass(frozen=True)
class _Refused:
    reason: str


class View(Generic[T]):
    """Made by ``Registry.watch``. ``instances`` changes under its reader between two awaits, never during one step."""

    def __init__(self, etcd: Etcd, prefix: str, decode: Callable[[str, bytes], T]) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._decode = decode
        self._instances: dict[str, T] = {}
        self._refused: dict[str, str] = {}
        self._missing: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()
        self._listed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._stopping = threading.Event()
        self._worker = Worker(self._run, f"watch {prefix}")
        self._worker.start()

    @property
    def instances(self) -> Mapping[str, T]:
        """Every instance that is registered now, by id. While etcd is away: the last that were known."""
        return MappingProxyType(self._instances)

    @property
    def refused(self) -> Mapping[str, str]:
        """Every entry that is skipped, by id, and why."""
        return MappingProxyType(self._refused)

    async def listed(self) -> None:
        """Returns once the instances have been read for the first time. Raises ``DiscoveryEnded``."""
        await self._worker.unless_ended(self._listed)

    async def changed(self) -> None:
        """Returns at the next change. Raises ``DiscoveryEnded``."""
        await self._worker.unless_ended(self._changed)

    async def wait_for(self, predicate: Callable[[Mapping[str, T]], bool], seconds: float) -> None:
        """Returns once ``predicate(instances)`` holds. Raises ``TimeoutError`` or ``DiscoveryEnded``."""
        async with asyncio.timeout(seconds):
            while not predicate(self.instances):
                await self.changed()

    async def close(self) -> None:
        with self._lock:
            self._stopping.set()
            if self._watch is not None:
                self._watch.cancel()
        await self._worker.end()
        for timer in self._missing.values():
            timer.cancel()

    # On the thread:

    def _run(self) -> None:
        available = True
        while not self._stopping.is_set():
            try:
                entries, revision = self._etcd.list(self._prefix)
                self._worker.post(self._replace, {self._id(entry): self._read(entry) for entry in entries})
                available = True
                with self._lock:
                    if self._stopping.is_set():
                        break
                    self._watch = self._etcd.watch(self._prefix, revision)
                for entry in self._watch:
                    self._worker.post(self._apply, self._id(entry), self._read(entry))
            except EtcdLost as error:
                if available and not self._stopping.is_set():
                    log.info("watching %s again: %s", self._prefix, error)
                available = False
                self._stopping.wait(_RETRY_SECONDS)

    def _id(self, entry: Entry) -> str:
        return entry.key.removeprefix(self._prefix)

    def _read(self, entry: Entry) -> T | _Refused | None:
        """The instance; None if the key has gone."""
        if entry.value is None:
            return None
        try:
            return self._decode(self._id(entry), entry.value)
        except ValueError as error:
            return _Refused(str(error)[:_REASON_LIMIT])
        except Exception as error:  # noqa: BLE001 - one stranger's entry must not end every process that reads it
            return _Refused(f"{type(error).__name__}: {error}"[:_REASON_LIMIT])

    # On the event loop:

    def _replace(self, present: dict[str, T | _Refused | None]) -> None:
        for id, found in present.items():
            self._apply(id, found)
        for id in [*self._instances.keys() - present.keys(), *self._refused.keys() - present.keys()]:
            self._gone(id)
        self._listed.set()
        self._notify()

    def _apply(self, id: str, found: T | _Refused | None) -> None:
        if found is None:
            self._gone(id)
            return
        timer = self._missing.pop(id, None)
        if timer is not None:
            timer.cancel()
        if isinstance(found, _Refused):
            if id not in self._refused:
                log.warning("%a in etcd is skipped: %a", (self._prefix + id)[:_REASON_LIMIT], found.reason)
            self._refused[id] = found.reason
            self._instances.pop(id, None)
        else:
            self._refused.pop(id, None)
            self._instances[id] = found
        self._notify()

    def _gone(self, id: str) -> None:
        """Removed at once, unless etcd was in trouble: then it has a while to register again, its lease being lost."""
        if id in self._missing:
            return
        if self._etcd.troubled:
            self._missing[id] = self._loop.call_later(CALM, self._still_gone, id)
        else:
            self._remove(id)

    def _still_gone(self, id: str) -> None:
        del self._missing[id]
        self._gone(id)

    def _remove(self, id: str) -> None:
        self._refused.pop(id, None)
        self._instances.pop(id, None)
        self._notify()

    def _notify(self) -> None:
        # Whoever waits holds the old event; whoever comes next waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()
