from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from components.messaging import Bus
from components.runtime.servers import NatsServer
from tests.servers import nats, until

__all__ = ["callee", "caller", "nats"]


@pytest.fixture
async def caller(nats: NatsServer) -> AsyncIterator[Bus]:
    async for bus in _bus(nats, "caller"):
        yield bus


@pytest.fixture
async def callee(nats: NatsServer) -> AsyncIterator[Bus]:
    async for bus in _bus(nats, "callee"):
        yield bus


async def _bus(nats: NatsServer, name: str) -> AsyncIterator[Bus]:
    """A bus that must have nothing left when the test is over: no call, no peer, no task."""
    bus = await Bus.connect([nats.url], name=name)
    yield bus
    await until(lambda: bus.open_calls == 0 and bus.peers == 0 and _handlers() == [])
    await bus.close()


def _handlers() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("panel-")]
