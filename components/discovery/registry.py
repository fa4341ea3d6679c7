"""The deployment's directory: who registers, and who looks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Self, TypeVar, cast

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
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            try:
                await on_thread(etcd.list, registry._prefix(""))
                return registry
            except EtcdLost as error:
                if loop.time() > deadline:
                    etcd.close()
                    raise ConnectionError(
                        f"no etcd answers at {', '.join(endpoints)} (waited {wait:g} s): {error}"
                    ) from None
            await asyncio.sleep(_RETRY_SECONDS)

    async def register(self, role: str, instance: str, value: bytes, *, ttl: float = 5.0) -> Registration:
        """Make the instance known; returns once etcd has it. Gone ``ttl`` seconds after this process dies."""
        registration = Registration(self._etcd, self._prefix(role) + instance, value, ttl)
        self._open.append(registration)
        await registration.written()
        return registration

    async def until_free(self, role: str, instance: str, *, seconds: float = 10.0) -> None:
        """Returns once nobody is registered with this id: one that was killed goes when its lease ends.

        Raises ``InstanceTaken`` after ``seconds``.
        """
        view = await self.watch(role, bytes)
        try:
            await view.wait_for(lambda instances: instance not in instances, seconds)
        except TimeoutError:
            raise InstanceTaken(f"another process is registered as {role} {instance}; ids must differ") from None
        finally:
            await view.close()

    async def watch(self, role: str, decode: Callable[[bytes], T]) -> View[T]:
        """A live view of a role; returns once its instances have been read.

        ``decode`` raises ``ValueError`` for a value that it does not understand; that instance is left out.
        """
        view = View(self._etcd, self._prefix(role), decode)
        self._open.append(view)  # type: ignore[arg-type]  # only to close it
        await view.listed()
        return view

    async def close(self) -> None:
        """Take away every registration, end every view, close the connection."""
        await asyncio.gather(*(each.close() for each in self._open))
        self._etcd.close()

    def _prefix(self, role: str) -> str:
        return f"/triptych/{self._namespace}/{role}/" if role else f"/triptych/{self._namespace}/"


async def on_thread(question: Callable[..., T], *arguments: object) -> T:
    """Ask etcd on a thread of its own: asyncio's shared ones may all be computing."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: EtcdLost | None) -> None:
        if answer.cancelled():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast(T, result))

    def ask() -> None:
        try:
            result = question(*arguments)
        except EtcdLost as error:
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    threading.Thread(target=ask, name="etcd", daemon=True).start()
    return await answer
