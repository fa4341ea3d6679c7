"""The encode panel: a picture's whereabouts in, its embedding's whereabouts out.

Answers ``find`` and ``encode``; a call of either stays open for as long as the caller needs what it was given. When it
closes, for whatever reason, the bytes are no longer kept, the embedding is no longer exposed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from components.aio import on_thread
from components.config import Topology
from components.engines.base import EncodeEngine, EngineError
from components.engines.load import engine
from components.media import Budget, Fetcher, Limits, Policy, salted
from components.messaging import CallError, Context, operation
from components.nixl_connect import Connector
from components.protocol import BufferImage, Embedding, EncodeRequest, ErrorCode, Found, UrlImage
from components.runtime import Panel
from components.runtime.connector import held, open_connector
from components.runtime.failures import as_call_errors
from components.runtime.hops import hops
from components.telemetry.trace import Trace
from workers.encode.batcher import Batcher
from workers.encode.cache import EmbeddingCache, Entry
from workers.encode.kept import KeptBytes
from workers.encode.pictures import PictureThreads
from workers.encode.source import ImageSources

IMAGES_IN_FLIGHT = 4
"""How many pictures of the largest size can be read from frontends at once; smaller ones share the same memory."""
IMAGES_FETCHED = 16
"""How many of the largest size can be on their way from the web, or be kept while others of their request are."""


class EncodeService:
    """One vision tower, one pool of embeddings, one cache over it."""

    def __init__(
        self,
        topology: Topology,
        connector: Connector,
        engine: EncodeEngine,
        sources: ImageSources,
        cache: EmbeddingCache,
        kept: KeptBytes,
        limits: Limits,
    ) -> None:
        self._topology = topology
        self._connector = connector
        self._engine = engine
        self._sources = sources
        self._cache = cache
        self._kept = kept
        self._pictures = PictureThreads(engine, limits)
        self._batcher = Batcher(
            engine,
            max_images=topology.encode.max_batch_images,
            window=topology.encode.batch_window_ms / 1e3,
        )

    async def close(self) -> None:
        await self._cache.close()
        await self._batcher.close()
        self._pictures.close()

    async def find(self, request: EncodeRequest, context: Context) -> AsyncIterator[Found]:
        """Nothing is held of the embedding, which may have given way to others when ``encode`` asks for it."""
        self._check(request)
        trace = Trace("encode")
        with as_call_errors():
            entry, data = await self._find(request, trace)
            entry.slot.release()
        found = Found(**self._described(entry, trace))
        if data is None or not isinstance(request.image, UrlImage):
            yield found
            return
        with self._kept.keep(entry.hash, data):
            yield found
            await asyncio.Event().wait()

    async def encode(self, request: EncodeRequest, context: Context) -> AsyncIterator[Embedding]:
        self._check(request)
        trace = Trace("encode")
        with as_call_errors():
            entry, _ = await self._find(request, trace)
            try:
                readable = await self._connector.create_readable(
                    entry.slot.descriptor, lease=self._topology.transfer.lease_seconds
                )
            finally:
                entry.slot.release()  # the readable holds its own reference
            async with readable:
                record = readable.metadata().model_dump_json().encode()
                yield Embedding(record=record, **self._described(entry, trace))
                await readable.wait_for_completion()

    def _check(self, request: EncodeRequest) -> None:
        if request.model != self._topology.model.name:
            raise CallError(ErrorCode.MODEL_NOT_FOUND, f"this worker encodes for {self._topology.model.name}")

    def _described(self, entry: Entry, trace: Trace) -> dict[str, Any]:
        format = self._engine.format
        return {
            "shape": (entry.tokens, format.width),
            "dtype": format.dtype,
            "grid": entry.grid,
            "revision": format.revision,
            "content_hash": entry.hash,
            "hops": hops(trace),
        }

    async def _find(self, request: EncodeRequest, trace: Trace) -> tuple[Entry, bytes | None]:
        """The picture's embedding, made if need be, its slot retained; and the picture, if it had to be loaded."""
        image = request.image
        said = salted(image.sha256, request.cache_salt) if isinstance(image, BufferImage) else request.content_hash
        if said and (known := self._cache.known(said)) is not None:
            if not request.content_hash:
                trace.add("cached embedding", 0.0)
            return known, None
        self._batcher.expected += 1
        try:
            data = await self._load(request, trace)
            hash = await self._pictures.hash(data, request.cache_salt)
            if said and hash != said:
                raise EngineError("transfer_failed", "a picture's bytes are not those of its SHA-256")
            with trace.step("encode") as step:
                entry, cached = await self._cache.get(hash, lambda: self._make(hash, data))
                step.name = "cached embedding" if cached else "encode"
            return entry, data
        finally:
            self._batcher.expected -= 1

    async def _load(self, request: EncodeRequest, trace: Trace) -> bytes:
        if not request.content_hash or isinstance(request.image, BufferImage):
            return await self._sources.load(request.image, trace)
        kept = self._kept.get(request.content_hash)
        if kept is None:
            # Whoever asks holds memory: not a moment for waiting for a stranger's server.
            raise EngineError("overloaded", "a picture had to give way to others", retryable=True)
        return kept

    async def _make(self, hash: str, data: bytes) -> Entry:
        prepared = await self._pictures.prepare(data)
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
    budget = Budget(IMAGES_FETCHED * media.max_bytes)
    async with (
        Panel.open("encode", topology, instance) as panel,
        open_connector(topology, panel.id) as connector,
        Fetcher(limits, policy, budget=budget) as fetcher,
    ):
        # On a thread, the imports too: a signal must end this process while it loads.
        encoder = await on_thread(lambda: engine(topology).encode_engine(topology), "load")
        await on_thread(encoder.warm_up, "warm up")
        embeddings = await connector.create_pool(topology.encode.pool_bytes, encoder.format.device)
        images = await connector.create_pool(IMAGES_IN_FLIGHT * media.max_bytes)
        sources = ImageSources(fetcher, connector, images, limits, deadline=topology.transfer.deadline_seconds)
        cache = EmbeddingCache(embeddings, deadline=topology.transfer.deadline_seconds)
        service = EncodeService(topology, connector, encoder, sources, cache, KeptBytes(budget), limits)
        await panel.serve(
            {"find": operation(EncodeRequest, service.find), "encode": operation(EncodeRequest, service.encode)},
            revision=encoder.format.revision,
            engine=topology.engine,
            capacity=topology.encode.max_batch_images,
            held=lambda: {
                **held(connector),
                "image bytes": images.used,
                "fetched bytes": budget.used,
                "embeddings being read": cache.being_read,
            },
        )
        try:
            await panel.until_stopped()
        finally:
            await service.close()
