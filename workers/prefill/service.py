"""The prefill panel: reads the pictures' embeddings, computes the prompt, writes its KV to the decode worker.

Answers ``prefill``; asks ``encode`` of encode workers and ``reserve`` of the decode worker that asked.
"""

from __future__ import annotations

from components import aio
from components.config import Topology
from components.engines.base import PrefillEngine, Prompt, check_token_ids
from components.engines.load import engine
from components.messaging import Bus, CallError, Context, operation
from components.protocol import (
    EncodeRequest,
    ErrorCode,
    Prefilled,
    PrefillRequest,
    Reservation,
    ReserveRequest,
    context_exceeded,
)
from components.runtime import Panel
from components.runtime.connector import held, open_connector
from components.runtime.failures import as_call_errors
from components.runtime.hops import hops
from components.telemetry.trace import Trace
from workers.prefill.images import ImageReader

EMBEDDING_POOL_PROMPTS = 2
"""Embeddings of this many prompts of full length fit into the pool they are read into."""


class PrefillService:
    def __init__(self, model: str, bus: Bus, engine: PrefillEngine, images: ImageReader) -> None:
        self._model = model
        self._bus = bus
        self._engine = engine
        self._images = images

    async def prefill(self, request: PrefillRequest, context: Context) -> Prefilled:
        if request.model != self._model:
            raise CallError(ErrorCode.MODEL_NOT_FOUND, f"this worker prefills for {self._model}")
        with as_call_errors():
            check_token_ids(request.token_ids, self._engine.vocabulary)
        trace = Trace("prefill")
        asked = [
            EncodeRequest(model=self._model, image=image, cache_salt=request.cache_salt) for image in request.images
        ]
        async with self._images.open(asked, context) as images:
            infos = await images.infos()
            with as_call_errors():
                token_ids = self._engine.expand(request.token_ids, [info.tokens for info in infos])
            self._check_length(len(token_ids))
            source = self._engine.source(request.token_ids, infos, request.cache_salt)
            read = await images.read()
            rows = tuple(image.rows for image in read)
            prompt = Prompt(token_ids, rows, request.sampling, request.cache_salt)
            reserving = aio.child(self._reserve(request, len(token_ids), source, context))
            try:
                with as_call_errors():
                    first = await self._engine.prefill(prompt, reserving, context.remaining())
            finally:
                await aio.end(reserving)
            trace.add("compute", first.compute_seconds)
            trace.add("write KV", first.kv_seconds, bytes=first.kv_bytes, lane=first.lane)
            return Prefilled(
                first_token=first.token,
                prompt_tokens=len(token_ids),
                image_tokens=sum(info.tokens for info in infos),
                next_position=first.next_position,
                handover=first.handover,
                hops=(*(hop for image in read for hop in image.hops), *hops(trace)),
            )

    def _check_length(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self._engine.max_context:
            raise CallError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED, context_exceeded(self._engine.max_context, prompt_tokens)
            )

    async def _reserve(self, request: PrefillRequest, prompt_tokens: int, source: bytes, context: Context) -> bytes:
        """Where the asking decode worker wants the KV."""
        reservation = await self._bus.call(
            request.reserve_subject,
            "reserve",
            ReserveRequest(attempt=request.attempt, prompt_tokens=prompt_tokens, source=source),
            reply=Reservation,
            context=context,
            stage="decode",
        )
        return reservation.target


async def run(topology: Topology, instance: str | None = None) -> None:
    """Serve until told to stop."""
    async with (
        Panel.open("prefill", topology, instance) as panel,
        open_connector(topology, panel.id) as connector,
    ):
        # On a thread, the imports too: a signal must end this process while it loads.
        prefill_engine = await aio.on_thread(lambda: engine(topology).prefill_engine(topology, connector), "load")
        await prefill_engine.start()
        format = prefill_engine.format
        size = EMBEDDING_POOL_PROMPTS * prefill_engine.max_context * format.row_bytes
        pool = await connector.create_pool(size, format.device)
        images = ImageReader(
            panel.bus,
            connector,
            pool,
            await panel.peers("encode", format.revision),
            format,
            deadline=topology.transfer.deadline_seconds,
        )
        service = PrefillService(topology.model.name, panel.bus, prefill_engine, images)
        await panel.serve(
            {"prefill": operation(PrefillRequest, service.prefill)},
            revision=format.revision,
            engine=topology.engine,
            held=lambda: {**held(connector), **prefill_engine.held(), "embedding bytes": pool.used},
        )
        try:
            await panel.until_stopped()
        finally:
            await prefill_engine.close()
