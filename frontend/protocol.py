"""uvicorn's HTTP, with an end to waiting for clients."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_READ_BYTES = 2**15
"""Read from a connection in one go. The body may come in chunks of one byte, each of which is an event of its own: as
much as asyncio would read by itself then holds the event loop for 200 ms."""


class Protocol(H11Protocol):
    """Cuts a client off that takes more than ``seconds`` to begin its first request, to send the headers of a request
    it has begun, or to take anything at all of what it is sent. (Idle between two requests it may be for uvicorn's
    ``timeout_keep_alive``; sending a body has the time-out of its request.)
    """

    def __init__(self, *args: Any, seconds: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self._seconds = seconds
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of asyncio's own transports
        self._start("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        for what in list(self._timers):
            self._stop(what)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._start("headers")
        else:
            self._stop("headers")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("reading")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("reading")

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # Closing waits until all that was written has been sent.
        self._start("reading")

    def _start(self, what: str) -> None:
        if what not in self._timers:
            self._timers[what] = self.loop.call_later(self._seconds, self.transport.abort)

    def _stop(self, what: str) -> None:
        if what in self._timers:
            self._timers.pop(what).cancel()
