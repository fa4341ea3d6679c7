"""``POST /v1/chat/completions``: one chat request from its body to its last byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from components import aio
from components.messaging import CallError, Context
from components.protocol import ChatDone, ChatItem, ErrorCode, TextDelta, Usage
from components.runtime import Peers
from components.runtime.hops import hops
from components.telemetry.trace import Trace
from frontend import metrics
from frontend.api_types import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    CompletionUsage,
    PromptTokensDetails,
    TraceReport,
)
from frontend.errors import ApiError, from_call
from frontend.images import ImageShelf
from frontend.sse import DONE, ChunkWriter, EventStream, event
from frontend.validate import Chat, chat_request, client_param


@dataclass(frozen=True)
class Backend:
    """What chat requests are answered with."""

    processors: Peers
    shelf: ImageShelf


class ChatResponse(Response):
    """Runs the request while it answers it: what the request holds is held in one block and freed at its end, whether
    that is the last byte, an error, or a client that hangs up.
    """

    def __init__(
        self,
        backend: Backend,
        chat: Chat,
        context: Context,
        trace: Trace,
        began: float,
        report: bool,
    ) -> None:
        super().__init__()
        self._backend = backend
        self._request = chat.request
        self._context = context
        self._trace = trace
        self._began = began
        self._report = report
        self._images = chat.images
        self._id = f"chatcmpl-{context.id}"
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = asyncio.Event()

        async def sending(message: Message) -> None:
            # Before it is sent: as soon as the client has the last byte, it may go.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                whole.set()
            await send(message)

        with metrics.IN_FLIGHT.track_inprogress():
            await _until_hang_up(receive, whole, self._answer(scope, receive, sending))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ``ApiError`` before the first byte; after it, errors are events of the stream."""
        stream = EventStream(send)
        try:
            # To the end of the answer, not of the prefill: if a decode worker dies, the prompt is prefilled once more.
            async with self._backend.shelf.expose(self._images, self._context.remaining(), self._trace) as images:
                request = chat_request(self._request, images)
                items: AsyncGenerator[ChatItem, None] = self._backend.processors.stream(
                    "chat", request, reply=ChatItem, context=self._context
                )
                async with aclosing(items):
                    first = await anext(items)
                    if self._request.stream:
                        await self._stream(stream, first, items)
                    else:
                        response = await self._whole(first, items)
                        await response(scope, receive, send)
        except StopAsyncIteration as error:
            raise from_call(CallError(ErrorCode.INTERNAL, "an answer without an item"), self._context.id) from error
        except CallError as error:
            failure = from_call(error, self._context.id)
            detail = failure.body.error
            detail.param = client_param(detail.param, str(detail.code), [image.param for image in self._images])
            if not stream.started:
                raise failure from error
            await _break_off(stream, failure)
        except Exception as error:
            # A bug of ours: whoever reads a stream is told, then it goes where all bugs go.
            if stream.started:
                await _break_off(stream, from_call(CallError(ErrorCode.INTERNAL, repr(error)), self._context.id))
            raise

    async def _stream(self, stream: EventStream, first: ChatItem, items: AsyncGenerator[ChatItem, None]) -> None:
        include_usage = self._request.stream_options is not None and bool(self._request.stream_options.include_usage)
        chunks = ChunkWriter(self._id, self._created, self._request.model, include_usage)
        begin = chunks.role()
        clock = _TokenClock(self._began)
        async for item in _chain(first, items):
            match item:
                case TextDelta(text=text, tokens=tokens):
                    clock.tick(tokens)
                    await stream.write(begin + chunks.text(text))
                    begin = b""
                case ChatDone():
                    trace, usage = self._finished(item, clock), _usage(item.usage)
                    if include_usage:
                        end = chunks.finish(item.finish_reason, msgspec.UNSET) + chunks.usage(usage, trace)
                    else:
                        end = chunks.finish(item.finish_reason, trace)
                    await stream.write(begin + end + DONE, more=False)
                    return
        raise CallError(ErrorCode.INTERNAL, "the answer ended without an end")

    async def _whole(self, first: ChatItem, items: AsyncGenerator[ChatItem, None]) -> Response:
        text: list[str] = []
        clock = _TokenClock(self._began)
        async for item in _chain(first, items):
            match item:
                case TextDelta():
                    clock.tick(item.tokens)
                    text.append(item.text)
                case ChatDone():
                    message = AssistantMessage(content="".join(text))
                    body = ChatCompletion(
                        id=self._id,
                        created=self._created,
                        model=self._request.model,
                        choices=[Choice(message=message, finish_reason=item.finish_reason)],
                        usage=_usage(item.usage),
                        triptych=self._finished(item, clock),
                    )
                    return Response(msgspec.json.encode(body), media_type="application/json")
        raise CallError(ErrorCode.INTERNAL, "the answer ended without an end")

    def _finished(self, done: ChatDone, clock: _TokenClock) -> TraceReport | msgspec.UnsetType:
        """Counts a whole answer; returns the way it took, if the client wants to know."""
        seconds = time.perf_counter() - self._began
        metrics.DURATION.observe(seconds)
        for kind in ("prompt", "completion", "image"):
            metrics.TOKENS.labels(kind).inc(getattr(done.usage, f"{kind}_tokens"))
        if not self._report:
            return msgspec.UNSET
        end = Trace("frontend")
        end.add("first text", clock.first_seconds, ago=seconds - clock.first_seconds)
        end.add("total", seconds)
        return TraceReport(id=self._context.id, hops=[*hops(self._trace), *done.hops, *hops(end)])


async def _break_off(stream: EventStream, failure: ApiError) -> None:
    metrics.ERRORS.labels(failure.body.error.code).inc()
    await stream.write(event(failure.json()) + DONE, more=False)


class _TokenClock:
    """Times pieces of text: the first from the request's arrival, the others from the one before."""

    def __init__(self, began: float) -> None:
        self._last = began
        self.first_seconds = 0.0

    def tick(self, tokens: int) -> None:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        if self.first_seconds:
            # What was held back to the end stands for no token of its own.
            metrics.NEXT_TOKEN.observe(seconds / max(1, tokens))
        else:
            self.first_seconds = seconds
            metrics.FIRST_TOKEN.observe(seconds)


def _usage(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(image_tokens=usage.image_tokens),
    )


async def _chain(first: ChatItem, rest: AsyncGenerator[ChatItem, None]) -> AsyncGenerator[ChatItem, None]:
    yield first
    async for item in rest:
        yield item


async def _until_hang_up(receive: Receive, whole: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Runs ``work``; cancels it, and waits until it has cleaned up, when the client goes away before its answer is
    ``whole``. After that the server reports a disconnect as well, and the work has only to clean up.
    """
    working, watching = aio.child(work), aio.child(_hang_up(receive))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done() or whole.is_set():
            await working
        else:
            metrics.HANG_UPS.inc()
    finally:
        await aio.end(working, watching)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
