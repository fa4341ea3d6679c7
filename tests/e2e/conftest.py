"""One running stack for most tests: one of each role, real servers, the bundled model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest
import pytest_asyncio

from benchmarks.reference import Reference
from benchmarks.stack import Stack, running_stack
from components.discovery import Registry, View
from components.media import content_hash
from components.messaging import Bus, Context
from components.nixl_connect import Connector, Pool
from components.protocol import (
    ROLES,
    VERSION,
    BufferImage,
    GenerateDone,
    GenerateItem,
    GenerateRequest,
    Hop,
    Instance,
    Role,
    Sampling,
    Status,
    StatusRequest,
    Tokens,
)
from components.runtime.directory import directory
from tests.model import MODEL
from tests.waiting import until


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One of each role. Pictures may come from this machine's own web servers: those of the tests."""
    cwd = tmp_path_factory.mktemp("stack")
    settings = [f"model.path={MODEL}", "model.name=tiny-vl", "encode.media.allow_private_networks=true"]
    with running_stack(sets=[*settings, "encode.media.timeout_seconds=2"], cwd=cwd) as running:
        yield running


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference(str(MODEL), threads=1)


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=60) as client:
        yield client


@dataclass
class Inside:
    """A test's own seat at the request plane and the data plane."""

    bus: Bus
    registry: Registry
    connector: Connector
    pool: Pool
    views: dict[Role, View[Instance]]

    def instances(self, role: Role) -> dict[str, Instance]:
        return dict(self.views[role].instances)

    async def held(self) -> dict[str, int]:
        """What every instance of every role holds, what is zero left out: ``{"decode-0 leases": 1}``."""
        result: dict[str, int] = {}
        for role in ROLES:
            for instance in self.instances(role).values():
                status = await self.bus.call(
                    instance.subject, "status", StatusRequest(), reply=Status, context=Context.new(5)
                )
                result |= {f"{instance.id} {name}": count for name, count in status.held.items() if count}
        return result

    async def idle(self) -> None:
        """Wait until nobody holds anything."""
        last: dict[str, int] = {}

        async def look() -> bool:
            nonlocal last
            last = await self.held()
            return not last

        await until(look, lambda: last, within=15)

    async def generate(
        self,
        decode: Instance,
        token_ids: list[int],
        pictures: list[bytes],
        sampling: Sampling,
        *,
        model: str,
        cache_salt: str = "",
        sha256_of: str | None = None,
    ) -> tuple[list[int], GenerateDone]:
        """Ask a decode instance as a processor does, with pictures exposed as a frontend does; ``sha256_of`` is said of
        each instead of the truth."""
        images, exposed = [], []
        for data in pictures:
            slot = self.pool.allocate(len(data))
            slot.numpy("uint8", (len(data),))[:] = memoryview(data)
            readable = await self.connector.create_readable(slot.descriptor, readers=None)
            slot.release()
            exposed.append(readable)
            record, sha256 = readable.metadata().model_dump_json().encode(), sha256_of or content_hash(data)
            images.append(BufferImage(record=record, size=len(data), sha256=sha256))
        request = GenerateRequest(
            model=model, token_ids=tuple(token_ids), images=tuple(images), sampling=sampling, cache_salt=cache_salt
        )
        tokens: list[int] = []
        done: GenerateDone | None = None
        async with self.bus.stream(
            decode.subject, "generate", request, reply=GenerateItem, context=Context.new(60)
        ) as items:
            async for item in items:
                match item:
                    case Tokens(ids=ids):
                        tokens += ids
                    case GenerateDone():
                        done = item
        for readable in exposed:
            readable.cancel()
        assert done is not None
        return tokens, done


@asynccontextmanager
async def join(stack: Stack, model: str = "tiny-vl") -> AsyncIterator[Inside]:
    bus = await Bus.connect([stack.nats], name="test", version=VERSION)
    registry = await Registry.connect([stack.etcd], "default")
    try:
        async with Connector() as connector:
            views = {role: await registry.watch(role, directory("default", role, model)) for role in ROLES}
            yield Inside(bus, registry, connector, await connector.create_pool(1 << 25), views)
    finally:
        await registry.close()
        await bus.close()


@pytest_asyncio.fixture
async def inside(stack: Stack) -> AsyncIterator[Inside]:
    async with join(stack) as seat:
        yield seat


def hop(hops: tuple[Hop, ...] | list[Hop], stage: str, name: str) -> list[Hop]:
    return [each for each in hops if (each.stage, each.name) == (stage, name)]
