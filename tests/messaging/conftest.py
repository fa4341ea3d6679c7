from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from components.messaging import Bus
from components.runtime.servers import NatsServer
from tests.messaging.example import fresh_bus
from tests.servers import nats, shared_nats

__all__ = ["nats", "shared_nats"]


@pytest.fixture
async def caller(shared_nats: NatsServer) -> AsyncIterator[Bus]:
    async with fresh_bus(shared_nats) as bus:
        yield bus


@pytest.fixture
async def callee(shared_nats: NatsServer) -> AsyncIterator[Bus]:
    async with fresh_bus(shared_nats) as bus:
        yield bus
