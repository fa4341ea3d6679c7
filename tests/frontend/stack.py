"""The real frontend and processor on real NATS, etcd and NIXL; behind them a stand-in that says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import httpx2
import numpy as np
from openai import AsyncOpenAI
from tokenizers import Tokenizer

import frontend.service
import processor.service
from components.config import Frontend, Media, Model, Topology
from components.config.topology import Encode, Etcd, Nats
from components.messaging import Context, operation
from components.nixl_connect import Connector, Descriptor, RdmaMetadata
from components.protocol import (
    BufferImage,
    GenerateDone,
    GenerateItem,
    GenerateRequest,
    Hop,
    Role,
    Started,
    Tokens,
    UrlImage,
    Usage,
)
from components.runtime import Panel
from components.runtime.connector import open_connector
from components.runtime.servers import EtcdServer, NatsServer, free_port
from tests.servers import until

MODEL = "small"
Script = Callable[[GenerateRequest, Context], AsyncIterator[GenerateItem]]


@dataclass
class Decoder:
    """Stands for decode, prefill and encode: reads the pictures by NIXL as encode does, then says ``answer``."""

    connector: Connector
    tokenizer: Tokenizer
    answer: str = "There are three."
    images: list[bytes | str] = field(default_factory=list)
    requests: list[GenerateRequest] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    running: int = 0
    closed: int = 0
    script: Script | None = None

    async def generate(self, request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        self.requests.append(request)
        self.contexts.append(context)
        self.running += 1
        try:
            items = (self.script or self.say)(request, context)
            async for item in items:
                yield item
        finally:
            self.running -= 1
            self.closed += 1

    async def say(self, request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        for image in request.images:
            self.images.append(image.url if isinstance(image, UrlImage) else await self.read(image))
        prompt_tokens = len(request.token_ids) + 7 * len(request.images)
        image_tokens = 8 * len(request.images)
        hop = Hop(stage="prefill", name="compute", start=0.0, milliseconds=1.0)
        yield Started(prompt_tokens=prompt_tokens, image_tokens=image_tokens, hops=(hop,))
        ids = self.tokenizer.encode(self.answer).ids
        kept = ids[: request.sampling.max_tokens]
        for id in kept:
            yield Tokens(ids=(id,))
        yield GenerateDone(
            finish_reason="stop" if kept == ids else "length",
            usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=len(kept), image_tokens=image_tokens),
            hops=(hop,),
        )

    async def read(self, image: BufferImage) -> bytes:
        data = np.zeros(image.size, np.uint8)
        metadata = RdmaMetadata.model_validate_json(image.record)
        async with await self.connector.begin_read(metadata, Descriptor(data)) as read:
            await read.wait_for_completion()
        return data.tobytes()


@dataclass
class Stack:
    topology: Topology
    decoder: Decoder
    connector: Connector
    """The frontend's own."""
    http: httpx2.AsyncClient
    openai: AsyncOpenAI
    panels: dict[Role, AsyncExitStack]

    async def idle(self) -> None:
        """Waits until nothing is held for any request."""
        await until(lambda: self.decoder.running == 0)
        await until(lambda: self.connector.counters().leases == 0)
        await until(lambda: self.connector.counters().pool_used_bytes == 0)

    async def start(self, role: Role) -> None:
        """A stand-in for a panel."""
        stack = self.panels[role] = AsyncExitStack()
        panel = await stack.enter_async_context(Panel.open(role, self.topology))
        operations = {"generate": operation(GenerateRequest, self.decoder.generate)} if role == "decode" else {}
        await panel.serve(operations)

    async def stop(self, role: Role) -> None:
        await self.panels.pop(role).aclose()


@asynccontextmanager
async def running(folder: Path, model: Path, tokenizer: Tokenizer) -> AsyncIterator[Stack]:
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(NatsServer(free_port(), folder / "nats"))
        etcd = await stack.enter_async_context(EtcdServer(free_port(), free_port(), folder / "etcd"))
        topology = Topology(
            model=Model(path=str(model), name=MODEL),
            nats=Nats(servers=(nats.url,)),
            etcd=Etcd(endpoints=(etcd.endpoint,)),
            encode=Encode(media=Media(max_bytes=4_000_000)),
            frontend=Frontend(
                port=free_port(),
                body_limit_bytes=4_000_000,
                pool_bytes=6_000_000,
                max_images=4,
                request_timeout_seconds=20.0,
            ),
            drain_seconds=5.0,
        )
        connectors: list[Connector] = []

        def open_and_note(topology: Topology, name: str) -> Connector:
            connectors.append(open_connector(topology, name))
            return connectors[-1]

        with patch("frontend.service.open_connector", open_and_note):
            for run in (frontend.service.run, processor.service.run):
                task = asyncio.create_task(run(topology))
                stack.push_async_callback(_end, task)
            decoder = Decoder(await stack.enter_async_context(Connector()), tokenizer)
            base = f"http://127.0.0.1:{topology.frontend.port}"
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=base, timeout=30.0, trust_env=False))
            client = await stack.enter_async_context(
                AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, http_client=http)
            )
            await answers(http, "/health", 200)
        whole = Stack(topology, decoder, connectors[0], http, client, {})
        roles: tuple[Role, ...] = ("encode", "prefill", "decode")
        for role in roles:
            await whole.start(role)
        try:
            await answers(http, "/ready", 200)
            yield whole
        finally:
            for role in list(whole.panels):
                await whole.stop(role)


async def answers(http: httpx2.AsyncClient, path: str, status: int, seconds: float = 20.0) -> httpx2.Response:
    """Asks until the answer has this status."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                response = await http.get(path)
                if response.status_code == status:
                    return response
            except httpx2.ConnectError:
                pass
            await asyncio.sleep(0.01)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
