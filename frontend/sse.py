"""A streamed answer as server-sent events.

A thousand of these a second pass through one process, so a chunk is not built as an object and encoded: all that
changes from one to the next is one JSON string between two pieces that are made once.
"""

from __future__ import annotations

import msgspec
from starlette.types import Send

from components.protocol import FinishReason
from frontend.api_types import ChatCompletionChunk, ChunkChoice, CompletionUsage, Delta, TraceReport

_encode = msgspec.json.Encoder().encode
_MARK = "\x00"

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies of the nginx family buffer otherwise, and the stream arrives in one piece at the end.
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class ChunkWriter:
    """The chunks of one answer. With ``include_usage`` each says ``"usage": null`` until the last has it."""

    def __init__(self, id: str, created: int, model: str, include_usage: bool) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._null = None if include_usage else msgspec.UNSET
        head, tail = event(self._chunk(Delta(content=_MARK))).split(_encode(_MARK))
        self._head, self._tail = head, tail

    def role(self) -> bytes:
        return event(self._chunk(Delta(role="assistant", content="")))

    def text(self, text: str) -> bytes:
        return self._head + _encode(text) + self._tail

    def finish(self, reason: FinishReason, trace: TraceReport | msgspec.UnsetType) -> bytes:
        return event(self._chunk(Delta(), reason, trace))

    def usage(self, usage: CompletionUsage, trace: TraceReport | msgspec.UnsetType) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=[], usage=usage, triptych=trace
        )
        return event(_encode(chunk))

    def _chunk(
        self, delta: Delta, reason: FinishReason | None = None, trace: TraceReport | msgspec.UnsetType = msgspec.UNSET
    ) -> bytes:
        return _encode(
            ChatCompletionChunk(
                id=self._id,
                created=self._created,
                model=self._model,
                choices=[ChunkChoice(delta=delta, finish_reason=reason)],
                usage=self._null,
                triptych=trace,
            )
        )


class EventStream:
    """The HTTP side: headers with the first bytes, one message a call."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def write(self, data: bytes, more: bool = True) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
