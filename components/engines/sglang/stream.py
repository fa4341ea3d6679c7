"""One request inside SGLang, between its event loop and the panel's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from components.aio import child_on
from components.engines.base import EngineError

T = TypeVar("T")

_ABORT_SECONDS = 1.0
"""An aborted request ends within some 15 ms, unless the abort overtook it on its way to the scheduler."""


class Finish(msgspec.Struct):
    """Why a request ended, in SGLang's words: ``type`` is ``stop``, ``length`` or ``abort``."""

    type: str
    message: str | None = None
    matched: object = None


@dataclass(frozen=True)
class Output:
    """New tokens of one request; ``finish`` comes with the last."""

    tokens: list[int]
    finish: Finish | None


class Stream:
    """A request that the engine works on from now on, read or not, until it ends or ``close`` aborts it."""

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop, request: dict[str, Any]) -> None:
        # The scheduler aborts by prefix: with ids of one length no request takes another with it.
        self._id = secrets.token_hex(16)
        self._engine = engine
        self._engine_loop = loop
        self._loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[Output | None] = asyncio.Queue()
        self._end: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._pump = child_on(loop, self._run(request))
        self._pump.add_done_callback(lambda pump: self._call(self._pumped, pump))

    async def outputs(self) -> AsyncGenerator[Output, None]:
        """Raises EngineError when the engine refuses the request or ends it for a reason of its own."""
        while (output := await self._outputs.get()) is not None:
            yield output
        await self.ended()

    async def ended(self) -> None:
        """Returns when the last output is there, read or not. Raises what ``outputs`` does."""
        await asyncio.wait([self._end])  # unlike ``await``, leaves it alone when this task is cancelled
        if error := self._end.result():
            raise error

    def fail(self, error: EngineError) -> None:
        """Ends ``outputs`` with ``error``: the engine will not answer any more."""
        self._finish(error)
        self._pump.cancel()

    async def close(self) -> None:
        """Returns when the engine has let go of the request; at once if it is over. Not to be cancelled."""
        if not self._pump.done():
            # Abort first: SGLang 0.5.17 forgets a request whose task is cancelled, and computes it to its end.
            self._engine_loop.call_soon_threadsafe(self._abort)
            await asyncio.wait([asyncio.wrap_future(self._pump)], timeout=_ABORT_SECONDS)
            self._engine_loop.call_soon_threadsafe(self._abort)
            self._pump.cancel()

    def _abort(self) -> None:
        self._engine.tokenizer_manager.abort_request(rid=self._id)

    async def _run(self, request: dict[str, Any]) -> None:
        try:
            async for chunk in self._engine.submit(**request, rid=self._id, stream=True):
                reason = chunk["meta_info"]["finish_reason"]
                finish = None if reason is None else msgspec.convert(reason, Finish)
                self._call(self._take, Output(chunk["output_ids"], finish))
        except ValueError as error:
            # What SGLang refuses it refuses so; whatever got here was made by our panels.
            raise EngineError("internal", f"SGLang refuses the request: {error}") from error

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        """On the panel's loop."""
        self._loop.call_soon_threadsafe(function, argument)

    def _take(self, output: Output) -> None:
        if output.finish is not None and output.finish.type == "abort":
            self._finish(EngineError("transfer_failed", f"SGLang ended it: {output.finish.message}", retryable=True))
        else:
            self._outputs.put_nowait(output)

    def _pumped(self, pump: concurrent.futures.Future[None]) -> None:
        self._finish(asyncio.CancelledError() if pump.cancelled() else pump.exception())

    def _finish(self, error: BaseException | None) -> None:
        if not self._end.done():
            self._end.set_result(error)
            self._outputs.put_nowait(None)
