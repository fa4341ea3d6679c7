from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from components.nixl_connect import Connector

from .harness import Remote, remote


@pytest_asyncio.fixture
async def connector() -> AsyncIterator[Connector]:
    async with Connector("here") as made:
        await made.start()
        yield made


@pytest_asyncio.fixture
async def other() -> AsyncIterator[Remote]:
    async with remote() as started:
        yield started
