"""The deployment's directory: who registers, and who looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self, TypeVar

from components.discovery.etcd import Etcd, EtcdLost
from components.discovery.registration import Registration
from components.discovery.view import View

T = TypeVar("T")

_RETRY_SECONDS = 0.2


class InstanceTaken(Exception):
    """Another process has this instance id. Two would both answer each request."""


class Registry:
    """Create with ``connect``. Keys are ``/triptych/<namespace>/<role>/<instance>``."""

    def __init__(self, etcd: Etcd, namespace: str) -> None:
        self._etcd = etcd
        self._namespace = namespace
        self._open: list[Registration | View[object]] = []

    @classmethod
    async def connect(cls, endpoints: Sequence[str], namespace: str, *, wait: float = 30.0) -> Self:
        """Waits up to ``wait`` seconds for etcd (``host:port`` of its members), then raises ``ConnectionError``."""
        etcd = Etcd(endpoints)
        registry = cls(etcd, namespace)
        # Not one of asyncio's shared threads: they may all be computing.
        thread = ThreadPoolExecutor(1, "etcd")
        why = "silence"
        with ExitStack() as unless_connected:
            unless_connected.callback(etcd.close)
            try:
                async with asyncio.timeout(wait):
                    while why:
                        why = await asyncio.get_running_loop().run_in_executor(thread, registry._trouble)
                        if why:
                            await asyncio.sleep(_RETRY_SECONDS)
            except TimeoutError:
                places = ", ".join(endpoints)
                raise ConnectionError(f"no etcd answers at {places} (waited {wait:g} s): {why}") from None
            finally:
                thread.shutdown(wait=False)
            unless_connected.pop_all()
        return registry

    async def register(self, role: str, instance: str, value: bytes, *, ttl: float = 5.0) -> Registration:
        """Make the instance known; returns once etcd has it. Gone ``ttl`` seconds after this process dies.

        Raises ``DiscoveryEnded``.
        """
        registration = Registration(self._etcd, self._prefix(role) + instance, value, ttl)
        self._open.append(registration)
        await registration.written()
        return registration

    async def until_free(self, role: str, instance: str, *, seconds: float = 10.0) -> None:
        """Returns once nobody is registered with this id: one that was killed goes when its lease ends.

        Raises ``InstanceTaken`` after ``seconds``.
        """
        view = await self.watch(role, lambda id, value: value)
        try:
            await view.wait_for(lambda instances: instance not in instances, seconds)
        except TimeoutError:
            raise InstanceTaken(f"another process is registered as {role} {instance}; ids must differ") from None
        finally:
            await view.close()

    async def watch(self, role: str, decode: Callable[[str, bytes], T]) -> View[T]:
        """A live view of a role; returns once its instances have been read. Raises ``DiscoveryEnded``.

        ``decode`` makes an instance of an id and its value, on another thread. It raises ``ValueError`` for what it
        does not take; that entry is in ``View.refused`` instead.
        """
        view = View(self._etcd, self._prefix(role), decode)
        self._open.append(view)  # type: ignore[arg-type]  # only to close it
        await view.listed()
        return view

    async def close(self) -> None:
        """Take away every registration, end every view, close the connection."""
        await asyncio.gather(*(each.close() for each in self._open))
        self._etcd.close()

    def _trouble(self) -> str:
        """What is wrong with etcd; "" if it answers."""
        try:
            self._etcd.get(self._prefix(""))
        except EtcdLost as error:
            return str(error)
        return ""

    def _prefix(self, role: str) -> str:
        return f"/triptych/{self._namespace}/{role}/" if role else f"/triptych/{self._namespace}/"
