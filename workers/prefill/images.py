"""A request's pictures: found by the encode workers all at once, then read all at once.

Three things are scarce: memory for embeddings at encode, memory to read them into here, KV memory at decode. In what
order a request takes them decides that no stranger keeps others waiting, and that no two requests wait for each other:

1. *Find.* Encode fetches, decodes and encodes each picture. The request holds nothing that another could lack: finished
   embeddings are cache and may give way. Only here does it wait for a web server that a stranger chose.
2. *Room.* When all are found the request takes memory for all of them here, in its turn: one request at a time
   collects, so none has a part of its memory and waits for the part of another. Whoever has all needs no more of it.
3. *Read.* Each embedding is exposed and read. Encode holds it for just that long, having made it again if it had given
   way; so those who hold memory at encode wait for nothing, and those who wait for it hold none of it.
4. *Reserve.* KV memory is asked for when the rows are here. Those who hold it compute, or decode, and wait for none of
   the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from components import aio
from components.engines.base import EmbeddingFormat, EngineError, ImageInfo, ImageRows
from components.messaging import Bus, CallError, Context
from components.nixl_connect import Connector, Pool, PoolExhausted, RdmaMetadata, Slot
from components.protocol import Embedding, EncodeRequest, ErrorCode, Found, Hop, Instance
from components.runtime import Peers
from components.runtime.failures import as_call_errors
from components.runtime.hops import hops
from components.telemetry.trace import Trace

_TRIES = 3


@dataclass(frozen=True)
class ReadImage:
    """Rows in a slot that belongs to the ``RequestImages``, and the way they took."""

    rows: ImageRows
    hops: tuple[Hop, ...]


@dataclass(frozen=True)
class _FoundImage:
    info: ImageInfo
    encoder: Instance
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
        self._turn = asyncio.Lock()

    def open(self, requests: Sequence[EncodeRequest], context: Context) -> RequestImages:
        """The pictures of one request, in its order; a context manager that holds what they need."""
        return RequestImages(self, requests, context)

    async def find(
        self, index: int, request: EncodeRequest, found: asyncio.Future[_FoundImage], context: Context
    ) -> None:
        """Set ``found``, then stay until cancelled: as long as the call is open encode keeps the picture's bytes.

        Another encode instance is tried when one dies or fails for a reason of its own. Raises CallError; ``index`` is
        the picture's place in the request, for errors to name it.
        """

        async def ask(encoder: Instance) -> None:
            trace = Trace("prefill")
            async with self._bus.stream(
                encoder.subject, "find", request, reply=Found, context=context, stage="encode"
            ) as answers:
                with trace.step("ask encode"):
                    answer = await anext(answers)
                with as_call_errors():
                    self._check(answer)
                info = ImageInfo(answer.grid, answer.shape[0], answer.content_hash)
                found.set_result(_FoundImage(info, encoder, (*answer.hops, *hops(trace))))
                await asyncio.Event().wait()

        try:
            await self._encoders.attempt(ask)
        except CallError as error:
            if error.code.startswith("image_"):
                error.param = f"images.{index}"
            raise

    async def room(self, infos: Sequence[ImageInfo]) -> list[Slot]:
        """A slot for each, taken while no other request takes any. Raises CallError ``overloaded``."""
        with ExitStack() as unless_done:
            slots = []
            try:
                async with asyncio.timeout(self._deadline), self._turn:
                    for info in infos:
                        size = info.tokens * self._format.row_bytes
                        # Until requests before this one are computed: their number is not limited elsewhere.
                        slots.append(await self._pool.reserve(size, deadline=self._deadline))
                        unless_done.callback(slots[-1].release)
            except (PoolExhausted, TimeoutError) as error:
                raise CallError(ErrorCode.OVERLOADED, "no memory to read embeddings into", retryable=True) from error
            unless_done.pop_all()
        return slots

    async def read(self, found: _FoundImage, request: EncodeRequest, slot: Slot, context: Context) -> ReadImage:
        """The rows of a picture that was found, in ``slot``. Raises CallError."""
        trace = Trace("prefill")
        request = msgspec.structs.replace(request, content_hash=found.info.content_hash)
        with as_call_errors():
            # The embedding is exposed for as long as this call is open.
            async with self._bus.stream(
                found.encoder.subject, "encode", request, reply=Embedding, context=context, stage="encode"
            ) as answers:
                with trace.step("expose embedding"):
                    embedding = await anext(answers)
                self._check(embedding)
                info = ImageInfo(embedding.grid, embedding.shape[0], embedding.content_hash)
                if info != found.info:
                    raise EngineError("internal", "an encode worker's answers about a picture differ")
                with trace.step("read embedding") as step:
                    step.lane = await self._transfer(embedding, slot)
                    step.bytes = info.tokens * self._format.row_bytes
        rows = ImageRows(info.grid, info.tokens, info.content_hash, slot)
        return ReadImage(rows, (*found.hops, *embedding.hops, *hops(trace)))

    def failed(self, found: _FoundImage, error: CallError) -> None:
        """Finding the picture again should prefer another worker, unless it was just short of memory."""
        if error.code != ErrorCode.OVERLOADED:
            self._encoders.drop(found.encoder.id)

    def _check(self, found: Found) -> None:
        """Refuse what would be misread, before any memory is taken for it."""
        if found.revision != self._format.revision:
            raise EngineError(
                "transfer_failed",
                f"encode worker has revision {found.revision} of the model, this worker {self._format.revision}",
                retryable=True,
            )
        if (found.shape[1], found.dtype) != (self._format.width, self._format.dtype):
            raise EngineError("transfer_failed", f"embedding is {found.shape} {found.dtype}, not what this model takes")

    async def _transfer(self, embedding: Embedding, slot: Slot) -> str:
        try:
            metadata = RdmaMetadata.model_validate_json(embedding.record)
        except ValueError as error:
            raise EngineError("transfer_failed", f"embedding record: {error}") from error
        async with await self._connector.begin_read(metadata, slot.descriptor, deadline=self._deadline) as read:
            await read.wait_for_completion()
            return read.lane


class _Finding:
    """A picture being found, and then kept at hand."""

    def __init__(self, reader: ImageReader, index: int, request: EncodeRequest, context: Context) -> None:
        self._found: asyncio.Future[_FoundImage] = asyncio.get_running_loop().create_future()
        self._task = aio.child(reader.find(index, request, self._found, context))

    async def found(self) -> _FoundImage:
        """Raises what finding it raises."""
        either: list[asyncio.Future[_FoundImage] | asyncio.Task[None]] = [self._found, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._found.done():
            self._task.result()
        return self._found.result()

    async def end(self) -> None:
        await aio.end(self._task)


class RequestImages:
    """The pictures of one request. Made by ``ImageReader.open``; leaving it gives back all that they hold."""

    def __init__(self, reader: ImageReader, requests: Sequence[EncodeRequest], context: Context) -> None:
        self._reader = reader
        self._requests = requests
        self._context = context
        self._findings: list[_Finding] = []
        self._slots: list[Slot] = []

    async def __aenter__(self) -> Self:
        self._findings = [self._find(index) for index in range(len(self._requests))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        for finding in self._findings:
            await aio.to_the_end(finding.end())

    async def infos(self) -> list[ImageInfo]:
        """What each picture is, when all are found: now the length of the prompt is known. Raises CallError."""
        return [found.info for found in await self._found()]

    async def read(self) -> list[ReadImage]:
        """All rows, in memory held until the block ends. Raises CallError."""
        for tries in range(1, _TRIES + 1):
            found = await self._found()
            self._slots = await self._reader.room([each.info for each in found])
            reads = map(self._read, found, self._requests, self._slots)
            outcomes = await asyncio.gather(*reads, return_exceptions=True)
            images = [each for each in outcomes if isinstance(each, ReadImage)]
            if len(images) == len(outcomes):
                return images
            # An encode worker has died, or the picture gave way to others there: it is found again, without memory.
            self._release()
            for index, outcome in enumerate(outcomes):
                if isinstance(outcome, BaseException):
                    if not isinstance(outcome, CallError) or not outcome.retryable or tries == _TRIES:
                        raise outcome
                    self._reader.failed(found[index], outcome)
                    await self._findings[index].end()
                    self._findings[index] = self._find(index)
        raise AssertionError("the last try returns or raises")

    def _find(self, index: int) -> _Finding:
        return _Finding(self._reader, index, self._requests[index], self._context)

    async def _found(self) -> list[_FoundImage]:
        return await asyncio.gather(*(finding.found() for finding in self._findings))

    async def _read(self, found: _FoundImage, request: EncodeRequest, slot: Slot) -> ReadImage:
        return await self._reader.read(found, request, slot, self._context)

    def _release(self) -> None:
        while self._slots:
            self._slots.pop().release()
