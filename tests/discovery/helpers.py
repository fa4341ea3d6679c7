"""Registries that must leave nothing behind, and what their views show."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from components.discovery import Registry, View
from components.runtime.servers import EtcdServer


@asynccontextmanager
async def connected(etcd: EtcdServer, namespace: str | None = None) -> AsyncIterator[Registry]:
    """A registry in a namespace of its own, which must leave no thread behind."""
    namespace = namespace or uuid.uuid4().hex
    registry = await Registry.connect([etcd.endpoint], namespace)
    try:
        yield registry
    finally:
        await registry.close()
    assert [thread.name for thread in threading.enumerate() if f"/{namespace}/" in thread.name] == []


def number(id: str, value: bytes) -> int:
    return int(value)


async def shows(view: View[int], expected: dict[str, int]) -> None:
    await view.wait_for(lambda instances: instances == expected, 10)
