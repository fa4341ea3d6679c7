"""Tries of a request at prefill, each with the KV memory reserved for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from components.aio import child, end, to_the_end
from components.engines.base import DecodeEngine, Reservation
from components.messaging import CallError, Context
from components.protocol import ErrorCode, Sampling

T = TypeVar("T")


class Attempt:
    """One try. The prefill worker asks for memory by ``id``; whatever it got goes back when the attempt is over.

    The memory is exposed for as long as the request, whose ``context`` it is, may take: prefill may have to wait and to
    compute for long, and whoever holds the attempt knows at once when prefill is gone.

    ``sampling.max_tokens`` is cut to what the context has room for once the prompt's length is known.
    """

    def __init__(self, sampling: Sampling, context: Context) -> None:
        self.id = secrets.token_hex(12)
        self.sampling = sampling
        self.context = context
        self.reserving: asyncio.Task[Reservation] | None = None
        self.reserved = asyncio.Event()

    @property
    def reservation(self) -> Reservation:
        """The memory prefill was given; there is one once ``reserved`` is set."""
        assert self.reserving is not None
        return self.reserving.result()

    async def unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns. Cancels it and raises EngineError when the engine gives up on the reservation first:
        prefill, which writes into it, would notice much later."""
        working, watching = child(work), child(self._watch())
        try:
            await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                watching.result()
            return await working
        finally:
            await end(working, watching)

    async def _watch(self) -> None:
        await self.reserved.wait()
        await self.reservation.watch()


class Attempts:
    """The tries under way, by id."""

    def __init__(self, engine: DecodeEngine) -> None:
        self._engine = engine
        self._open: dict[str, Attempt] = {}

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def open(self, sampling: Sampling, context: Context) -> AsyncIterator[Attempt]:
        attempt = Attempt(sampling, context)
        self._open[attempt.id] = attempt
        try:
            yield attempt
        finally:
            del self._open[attempt.id]
            if attempt.reserving is not None:
                await to_the_end(_give_back(attempt.reserving))

    async def reserve(self, id: str, prompt_tokens: int, source: bytes) -> bytes:
        """The target for attempt ``id``'s KV; waits for memory. Raises CallError, EngineError."""
        attempt = self._open.get(id)
        if attempt is None or attempt.reserving is not None:
            raise CallError(ErrorCode.CANCELLED, "this attempt is over, or has its memory already")
        self._engine.check(prompt_tokens)
        # Only here is it known how much of the context the pictures have left for the answer.
        room = self._engine.max_context - prompt_tokens
        attempt.sampling = msgspec.structs.replace(attempt.sampling, max_tokens=min(attempt.sampling.max_tokens, room))
        if not (seconds := attempt.context.remaining()):
            raise CallError(ErrorCode.DEADLINE_EXCEEDED, "the request's time is over")
        attempt.reserving = child(self._engine.reserve(prompt_tokens, attempt.sampling, source, seconds))
        reservation = await attempt.reserving
        attempt.reserved.set()
        return reservation.target


async def _give_back(reserving: asyncio.Task[Reservation]) -> None:
    reserving.cancel()
    (outcome,) = await asyncio.gather(reserving, return_exceptions=True)
    if not isinstance(outcome, BaseException):
        outcome.release()
