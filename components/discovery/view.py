"""Who is there: a role's instances, kept up to date by a thread that watches etcd."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Generic, TypeVar

from components.discovery.etcd import Entry, Etcd, EtcdLost, Watch

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS = 0.5
_RETURN_SECONDS = 5.0
"""How long an instance may be missing after etcd came back: one that lost its lease meanwhile registers again."""


class View(Generic[T]):
    """Made by ``Registry.watch``. ``instances`` changes under its reader between two awaits, never during one step."""

    def __init__(self, etcd: Etcd, prefix: str, decode: Callable[[bytes], T]) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._decode = decode
        self._instances: dict[str, T] = {}
        self._missing: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()
        self._listed = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {prefix}", daemon=True)
        self._thread.start()

    @property
    def instances(self) -> Mapping[str, T]:
        """Every instance that is registered now, by id. While etcd is away: the last that were known."""
        return MappingProxyType(self._instances)

    async def listed(self) -> None:
        """Returns once the instances have been read for the first time."""
        await self._listed.wait()

    async def changed(self) -> None:
        """Returns at the next change."""
        await self._changed.wait()

    async def wait_for(self, predicate: Callable[[Mapping[str, T]], bool], seconds: float) -> None:
        """Returns once ``predicate(instances)`` holds. Raises ``TimeoutError``."""
        async with asyncio.timeout(seconds):
            while not predicate(self.instances):
                await self.changed()

    async def close(self) -> None:
        with self._lock:
            self._stopping.set()
            if self._watch is not None:
                self._watch.cancel()
        await self._ended.wait()
        self._thread.join()  # Setting the event was its last act.
        for timer in self._missing.values():
            timer.cancel()

    # On the thread:

    def _run(self) -> None:
        available = True
        while not self._stopping.is_set():
            try:
                entries, revision = self._etcd.list(self._prefix)
                self._post(self._replace, entries)
                available = True
                with self._lock:
                    if self._stopping.is_set():
                        break
                    self._watch = self._etcd.watch(self._prefix, revision)
                for entry in self._watch:
                    self._post(self._apply, entry)
            except EtcdLost as error:
                if available and not self._stopping.is_set():
                    log.info("watching %s again: %s", self._prefix, error)
                available = False
                self._stopping.wait(_RETRY_SECONDS)
        self._post(self._ended.set)

    def _post(self, action: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody looks any more.
            self._loop.call_soon_threadsafe(action, *arguments)

    # On the event loop:

    def _replace(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._apply(entry)
        present = {self._id(entry.key) for entry in entries}
        for id in self._instances.keys() - present - self._missing.keys():
            self._missing[id] = self._loop.call_later(_RETURN_SECONDS, self._remove, id)
        self._listed.set()
        self._notify()

    def _apply(self, entry: Entry) -> None:
        id = self._id(entry.key)
        timer = self._missing.pop(id, None)
        if timer is not None:
            timer.cancel()
        if entry.value is None:
            self._remove(id)
            return
        try:
            self._instances[id] = self._decode(entry.value)
        except ValueError as error:
            log.warning("%s is skipped: %s", entry.key, error)
            self._instances.pop(id, None)
        self._notify()

    def _remove(self, id: str) -> None:
        self._missing.pop(id, None)
        self._instances.pop(id, None)
        self._notify()

    def _id(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _notify(self) -> None:
        # Whoever waits holds the old event; whoever comes next waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()
