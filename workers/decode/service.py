"""The decode panel: admits a request, has it prefilled, and decodes it in a continuous batch.

Answers ``generate``, and ``reserve`` from the prefill worker it asked; asks ``prefill``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from components.aio import on_thread
from components.config import Topology
from components.engines.base import DecodeEngine, check_token_ids
from components.engines.load import engine
from components.messaging import Bus, CallError, Context, operation
from components.protocol import (
    ErrorCode,
    GenerateDone,
    GenerateItem,
    GenerateRequest,
    Instance,
    Prefilled,
    PrefillRequest,
    Reservation,
    ReserveRequest,
    Started,
    Tokens,
    Usage,
)
from components.runtime import Panel, Peers
from components.runtime.connector import held, open_connector
from components.runtime.failures import as_call_errors
from components.runtime.hops import hops
from components.telemetry.trace import Trace
from workers.decode.attempts import Attempt, Attempts


class DecodeService:
    def __init__(
        self, model: str, subject: str, bus: Bus, engine: DecodeEngine, prefillers: Peers, *, max_requests: int
    ) -> None:
        self._model = model
        self._subject = subject
        self._bus = bus
        self._engine = engine
        self._prefillers = prefillers
        self._attempts = Attempts(engine)
        self._max_requests = max_requests
        self._requests = 0

    @property
    def attempts(self) -> int:
        return len(self._attempts)

    async def reserve(self, request: ReserveRequest, context: Context) -> Reservation:
        with as_call_errors():
            target = await self._attempts.reserve(request.attempt, request.prompt_tokens, request.source)
        return Reservation(target=target)

    async def generate(self, request: GenerateRequest, context: Context) -> AsyncGenerator[GenerateItem, None]:
        if request.model != self._model:
            raise CallError(ErrorCode.MODEL_NOT_FOUND, f"this worker decodes for {self._model}")
        if self._requests >= self._max_requests:
            raise CallError(ErrorCode.OVERLOADED, f"{self._requests} requests are in work here", retryable=True)
        with as_call_errors():
            self._engine.check(len(request.token_ids))
            check_token_ids(request.token_ids, self._engine.vocabulary)
        self._requests += 1
        try:
            async with aclosing(self._generate(request, context)) as items:
                async for item in items:
                    yield item
        finally:
            self._requests -= 1

    async def _generate(self, request: GenerateRequest, context: Context) -> AsyncGenerator[GenerateItem, None]:
        trace = Trace("decode")
        async with AsyncExitStack() as stack:
            with trace.step("prefill and KV"):
                attempt, prefilled = await self._prefill(request, context, stack)
            yield Started(
                prompt_tokens=prefilled.prompt_tokens,
                image_tokens=prefilled.image_tokens,
                hops=(*prefilled.hops, *hops(trace)),
            )
            began, count = time.perf_counter(), 0
            with as_call_errors():
                tokens = self._engine.generate(
                    attempt.reservation,
                    prefilled.first_token,
                    prefilled.next_position,
                    attempt.sampling,
                    prefilled.handover,
                )
                async with aclosing(tokens):
                    async for ids in tokens:
                        count += len(ids)
                        yield Tokens(ids=tuple(ids))
            trace.add("decode", time.perf_counter() - began)
        yield GenerateDone(
            finish_reason="length" if count == attempt.sampling.max_tokens else "stop",
            usage=Usage(
                prompt_tokens=prefilled.prompt_tokens, completion_tokens=count, image_tokens=prefilled.image_tokens
            ),
            hops=(*prefilled.hops, *hops(trace)),
        )

    async def _prefill(
        self, request: GenerateRequest, context: Context, stack: AsyncExitStack
    ) -> tuple[Attempt, Prefilled]:
        """Another prefill instance is tried when one dies or fails for a reason of its own. Raises CallError.

        The attempt that succeeded, and with it its KV memory, lives as long as ``stack``.
        """

        async def ask(prefiller: Instance) -> tuple[Attempt, Prefilled]:
            async with AsyncExitStack() as trying:
                attempt = await trying.enter_async_context(self._attempts.open(request.sampling, context))
                asked = PrefillRequest(
                    model=request.model,
                    token_ids=request.token_ids,
                    images=request.images,
                    sampling=request.sampling,
                    reserve_subject=self._subject,
                    attempt=attempt.id,
                    cache_salt=request.cache_salt,
                )
                answer = self._bus.call(
                    prefiller.subject, "prefill", asked, reply=Prefilled, context=context, stage="prefill"
                )
                with as_call_errors():
                    prefilled = await attempt.unless_lost(answer)
                stack.push_async_exit(trying.pop_all())
            return attempt, prefilled

        return await self._prefillers.attempt(ask)


async def run(topology: Topology, instance: str | None = None) -> None:
    """Serve until told to stop."""
    async with (
        Panel.open("decode", topology, instance) as panel,
        open_connector(topology, panel.id) as connector,
    ):
        # On a thread, the imports too: a signal must end this process while it loads.
        decode_engine = await on_thread(lambda: engine(topology).decode_engine(topology, connector), "load")
        await decode_engine.start()
        service = DecodeService(
            topology.model.name,
            panel.subject,
            panel.bus,
            decode_engine,
            await panel.peers("prefill"),
            max_requests=topology.decode.max_batch + topology.decode.max_waiting,
        )
        await panel.serve(
            {
                "generate": operation(GenerateRequest, service.generate),
                # A request that runs here needs it, also while this worker drains.
                "reserve": operation(ReserveRequest, service.reserve, inner=True),
            },
            engine=topology.engine,
            capacity=topology.decode.max_batch,
            held=lambda: {**held(connector), **decode_engine.held(), "attempts": service.attempts},
        )
        try:
            await panel.until_stopped()
        finally:
            await decode_engine.close()
