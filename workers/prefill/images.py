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

A request with one picture takes a shorter way when there is room at once: found and read in one exchange.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    """``read`` is there when the picture was read as soon as it was found."""

    info: ImageInfo
    encoder: Instance
    hops: tuple[Hop, ...]
    read: ReadImage | None = None


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
                    info = self._checked(answer)
                found.set_result(_FoundImage(info, encoder, (*answer.hops, *hops(trace))))
                await asyncio.Event().wait()

        with _naming(index):
            await self._encoders.attempt(ask)

    async def find_and_read(self, request: EncodeRequest, context: Context) -> _FoundImage:
        """The only picture of a request, read at once if there is room without waiting: one exchange, not two.

        Encode holds the embedding meanwhile, but nobody waits. Whoever gets the result releases the slot in it.
        """

        async def ask(encoder: Instance) -> _FoundImage:
            trace = Trace("prefill")
            with as_call_errors(), ExitStack() as unless_done:
                async with self._bus.stream(
                    encoder.subject, "encode", request, reply=Embedding, context=context, stage="encode"
                ) as answers:
                    with trace.step("ask encode"):
                        embedding = await anext(answers)
                    info = self._checked(embedding)
                    way = (*embedding.hops, *hops(trace))
                    slot = self._room_now(info)
                    if slot is None:
                        return _FoundImage(info, encoder, way)
                    unless_done.callback(slot.release)
                    rows = await self._transfer(embedding, info, slot, trace)
                unless_done.pop_all()
            return _FoundImage(info, encoder, way, ReadImage(rows, (*embedding.hops, *hops(trace))))

        with _naming(0):
            return await self._encoders.attempt(ask)

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

    def _room_now(self, info: ImageInfo) -> Slot | None:
        if self._turn.locked():
            return None
        try:
            return self._pool.allocate(info.tokens * self._format.row_bytes)
        except PoolExhausted:
            return None

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
                if self._checked(embedding) != found.info:
                    raise EngineError("internal", "an encode worker's answers about a picture differ")
                rows = await self._transfer(embedding, found.info, slot, trace)
        return ReadImage(rows, (*found.hops, *embedding.hops, *hops(trace)))

    def failed(self, found: _FoundImage, error: CallError) -> None:
        """Finding the picture again should prefer another worker, unless it was just short of memory."""
        if error.code != ErrorCode.OVERLOADED:
            self._encoders.drop(found.encoder.id)

    def _checked(self, found: Found) -> ImageInfo:
        """Refuse what would be misread, before any memory is taken for it."""
        if found.revision != self._format.revision:
            raise EngineError(
                "transfer_failed",
                f"encode worker has revision {found.revision} of the model, this worker {self._format.revision}",
                retryable=True,
            )
        if (found.shape[1], found.dtype) != (self._format.width, self._format.dtype):
            raise EngineError("transfer_failed", f"embedding is {found.shape} {found.dtype}, not what this model takes")
        return ImageInfo(found.grid, found.shape[0], found.content_hash)

    async def _transfer(self, embedding: Embedding, info: ImageInfo, slot: Slot, trace: Trace) -> ImageRows:
        try:
            metadata = RdmaMetadata.model_validate_json(embedding.record)
        except ValueError as error:
            raise EngineError("transfer_failed", f"embedding record: {error}") from error
        with trace.step("read embedding") as step:
            async with await self._connector.begin_read(metadata, slot.descriptor, deadline=self._deadline) as read:
                await read.wait_for_completion()
            step.lane, step.bytes = read.lane, info.tokens * self._format.row_bytes
        return ImageRows(info.grid, info.tokens, info.content_hash, slot)


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Errors about the picture name it by its place in the request."""
    try:
        yield
    except CallError as error:
        if error.code.startswith("image_"):
            error.param = f"images.{index}"
        raise


class _Finding:
    """A picture being found, and then kept at hand; ``alone`` in its request it is read at once if that can be."""

    def __init__(
        self, reader: ImageReader, index: int, request: EncodeRequest, context: Context, *, alone: bool
    ) -> None:
        self._found: asyncio.Future[_FoundImage] = asyncio.get_running_loop().create_future()
        if alone:
            self._task = aio.child(self._at_once(reader, request, context))
        else:
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
        if self._found.done() and (read := self._found.result().read) is not None:
            read.rows.slot.release()

    async def _at_once(self, reader: ImageReader, request: EncodeRequest, context: Context) -> None:
        self._found.set_result(await reader.find_and_read(request, context))


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
        await aio.to_the_end(self._end())

    async def infos(self) -> list[ImageInfo]:
        """What each picture is, when all are found: now the length of the prompt is known. Raises CallError."""
        return [found.info for found in await self._found()]

    async def read(self) -> list[ReadImage]:
        """All rows, in memory held until the block ends. Raises CallError."""
        for tries in range(1, _TRIES + 1):
            found = await self._found()
            if all(each.read for each in found):
                return [each.read for each in found if each.read]
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
        alone = len(self._requests) == 1
        return _Finding(self._reader, index, self._requests[index], self._context, alone=alone)

    async def _found(self) -> list[_FoundImage]:
        return await asyncio.gather(*(finding.found() for finding in self._findings))

    async def _read(self, found: _FoundImage, request: EncodeRequest, slot: Slot) -> ReadImage:
        return await self._reader.read(found, request, slot, self._context)

    async def _end(self) -> None:
        await asyncio.gather(*(finding.end() for finding in self._findings))

    def _release(self) -> None:
        while self._slots:
            self._slots.pop().release()
