"""The encode panel: a picture's whereabouts in, its embedding's whereabouts out.

Answers ``encode``. The call stays open for as long as the caller reads: when it closes, for whatever reason, the
embedding is no longer exposed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from components.aio import on_thread
from components.config import Topology
from components.engines.base import EncodeEngine, EngineError
from components.engines.load import engine
from components.media import Fetcher, Limits, Policy, content_hash, decode, salted
from components.messaging import CallError, Context, operation
from components.nixl_connect import Connector
from components.protocol import BufferImage, Embedding, EncodeRequest, ErrorCode
from components.runtime import Panel
from components.runtime.connector import held, open_connector
from components.runtime.failures import as_call_errors
from components.runtime.hops import hops
from components.telemetry.trace import Trace
from workers.encode.batcher import Batcher
from workers.encode.cache import EmbeddingCache, Entry
from workers.encode.source import ImageSources

IMAGES_IN_FLIGHT = 4
"""How many pictures of the largest size can be read from frontends at once; smaller ones share the same memory."""


class EncodeService:
    """One vision tower, one pool of embeddings, one cache over it."""

    def __init__(
        self,
        topology: Topology,
        connector: Connector,
        engine: EncodeEngine,
        sources: ImageSources,
        cache: EmbeddingCache,
        limits: Limits,
    ) -> None:
        self._topology = topology
        self._connector = connector
        self._engine = engine
        self._sources = sources
        self._cache = cache
        self._limits = limits
        self._batcher = Batcher(
            engine,
            max_images=topology.encode.max_batch_images,
            window=topology.encode.batch_window_ms / 1e3,
        )

    async def close(self) -> None:
        await self._cache.close()
        await self._batcher.close()

    async def encode(self, request: EncodeRequest, context: Context) -> AsyncIterator[Embedding]:
        if request.model != self._topology.model.name:
            raise CallError(ErrorCode.MODEL_NOT_FOUND, f"this worker encodes for {self._topology.model.name}")
        trace = Trace("encode")
        with as_call_errors():
            entry = await self._find(request, trace)
            try:
                readable = await self._connector.create_readable(
                    entry.slot.descriptor, lease=self._topology.transfer.lease_seconds
                )
            finally:
                entry.slot.release()  # the readable holds its own reference
            async with readable:
                format = self._engine.format
                yield Embedding(
                    record=readable.metadata().model_dump_json().encode(),
                    shape=(entry.tokens, format.width),
                    dtype=format.dtype,
                    grid=entry.grid,
                    revision=format.revision,
                    content_hash=entry.hash,
                    hops=hops(trace),
                )
                await readable.wait_for_completion()

    async def _find(self, request: EncodeRequest, trace: Trace) -> Entry:
        """The picture's embedding, made if need be; its slot is retained."""
        said = salted(request.image.sha256, request.cache_salt) if isinstance(request.image, BufferImage) else None
        if said is not None and (known := self._cache.known(said)) is not None:
            trace.add("cached embedding", 0.0)
            return known
        self._batcher.expected += 1
        try:
            data = await self._sources.load(request.image, trace)
            hash = await asyncio.to_thread(content_hash, data, request.cache_salt)
            if said is not None and hash != said:
                raise EngineError("transfer_failed", "a picture's bytes are not those of its SHA-256")
            with trace.step("encode") as step:
                entry, cached = await self._cache.get(hash, lambda: self._make(hash, data))
                step.name = "cached embedding" if cached else "encode"
            return entry
        finally:
            self._batcher.expected -= 1

    async def _make(self, hash: str, data: bytes) -> Entry:
        prepared = await asyncio.to_thread(lambda: self._engine.prepare(decode(data, self._limits)))
        slot = await self._cache.allocate(prepared.tokens * self._engine.format.row_bytes)
        try:
            await self._batcher.encode(prepared, slot)
        except BaseException:
            slot.release()
            raise
        return Entry(hash, slot, prepared.grid, prepared.tokens)


async def run(topology: Topology, instance: str | None = None) -> None:
    """Serve until told to stop."""
    media = topology.encode.media
    limits = Limits(
        max_bytes=media.max_bytes,
        max_pixels=media.max_pixels,
        timeout_seconds=media.timeout_seconds,
        max_redirects=media.max_redirects,
    )
    policy = Policy(allow_http=media.allow_http, allow_private_networks=media.allow_private_networks)
    async with (
        Panel.open("encode", topology, instance) as panel,
        open_connector(topology, panel.id) as connector,
        Fetcher(limits, policy) as fetcher,
    ):
        # On a thread, the imports too: a signal must end this process while it loads.
        encoder = await on_thread(lambda: engine(topology).encode_engine(topology), "load")
        await on_thread(encoder.warm_up, "warm up")
        embeddings = await connector.create_pool(topology.encode.pool_bytes, encoder.format.device)
        images = await connector.create_pool(IMAGES_IN_FLIGHT * media.max_bytes)
        sources = ImageSources(fetcher, connector, images, limits, deadline=topology.transfer.deadline_seconds)
        cache = EmbeddingCache(embeddings, deadline=topology.transfer.deadline_seconds)
        service = EncodeService(topology, connector, encoder, sources, cache, limits)
        await panel.serve(
            {"encode": operation(EncodeRequest, service.encode)},
            revision=encoder.format.revision,
            engine=topology.engine,
            capacity=topology.encode.max_batch_images,
            held=lambda: {**held(connector), "image bytes": images.used, "embeddings being read": cache.being_read},
        )
        try:
            await panel.until_stopped()
        finally:
            await service.close()
