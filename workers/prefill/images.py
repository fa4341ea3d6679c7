"""A request's pictures: asked of the encode workers all at once, each read as soon as it is ready."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass

from components.engines.base import EmbeddingFormat, EngineError, ImageInfo, ImageRows
from components.messaging import Bus, CallError, Context
from components.nixl_connect import Connector, Pool, PoolExhausted, RdmaMetadata, Slot
from components.protocol import Embedding, EncodeRequest, Hop
from components.runtime import Peers
from components.runtime.failures import as_call_errors
from components.runtime.hops import hops
from components.telemetry.trace import Trace


@dataclass(frozen=True)
class ReadImage:
    """Rows in a slot that whoever holds this releases, and the way they took."""

    rows: ImageRows
    hops: tuple[Hop, ...]


class ImageReader:
    """Brings embeddings into this worker's registered pool by NIXL reads."""

    def __init__(
        self, bus: Bus, connector: Connector, pool: Pool, encoders: Peers, format: EmbeddingFormat, *, deadline: float
    ) -> None:
        self._bus = bus
        self._connector = connector
        self._pool = pool
        self._encoders = encoders
        self._format = format
        self._deadline = deadline

    async def read(
        self, index: int, request: EncodeRequest, info: asyncio.Future[ImageInfo], context: Context
    ) -> ReadImage:
        """Another encode instance is tried when one dies or fails for a reason of its own. Raises CallError.

        ``index`` is the picture's place in the request, for errors to name it.

        ``info`` is set as soon as an encode worker has answered, before the rows are here: from then on the length of
        the prompt is known.
        """

        async def attempt(subject: str) -> ReadImage:
            with as_call_errors():
                return await self._read(subject, request, info, context)

        try:
            return await self._encoders.attempt(lambda encoder: attempt(encoder.subject))
        except CallError as error:
            if error.code.startswith("image_"):
                error.param = f"images.{index}"
            raise

    async def _read(
        self, subject: str, request: EncodeRequest, info: asyncio.Future[ImageInfo], context: Context
    ) -> ReadImage:
        trace = Trace("prefill")
        with ExitStack() as unless_done:
            # The embedding is exposed for as long as this call is open.
            async with self._bus.stream(
                subject, "encode", request, reply=Embedding, context=context, stage="encode"
            ) as answers:
                with trace.step("ask encode"):
                    embedding = await anext(answers)
                self._check(embedding)
                count = embedding.shape[0]
                found = ImageInfo(embedding.grid, count, embedding.content_hash)
                if not info.done():
                    info.set_result(found)
                elif info.result() != found:
                    raise EngineError("internal", "two encode workers disagree about a picture")
                with trace.step("read embedding") as step:
                    slot, step.lane = await self._transfer(embedding)
                    unless_done.callback(slot.release)
                    step.bytes = count * self._format.row_bytes
            unless_done.pop_all()
        rows = ImageRows(embedding.grid, count, embedding.content_hash, slot)
        return ReadImage(rows, (*embedding.hops, *hops(trace)))

    def _check(self, embedding: Embedding) -> None:
        """Refuse what would be misread, before any memory is taken for it."""
        if embedding.revision != self._format.revision:
            raise EngineError(
                "transfer_failed",
                f"encode worker has revision {embedding.revision} of the model, this worker {self._format.revision}",
                retryable=True,
            )
        if (embedding.shape[1], embedding.dtype) != (self._format.width, self._format.dtype):
            raise EngineError(
                "transfer_failed", f"embedding is {embedding.shape} {embedding.dtype}, not what this model takes"
            )

    async def _transfer(self, embedding: Embedding) -> tuple[Slot, str]:
        try:
            metadata = RdmaMetadata.model_validate_json(embedding.record)
            # Until requests before this one are computed: their number is not limited elsewhere.
            slot = await self._pool.reserve(embedding.shape[0] * self._format.row_bytes, deadline=self._deadline)
        except ValueError as error:
            raise EngineError("transfer_failed", f"embedding record: {error}") from error
        except PoolExhausted as error:
            raise EngineError("overloaded", "no memory to read embeddings into", retryable=True) from error
        try:
            async with await self._connector.begin_read(metadata, slot.descriptor, deadline=self._deadline) as read:
                await read.wait_for_completion()
                return slot, read.lane
        except BaseException:
            slot.release()
            raise
