"""One answer on its way: the handler that makes it, and the frames that may have to be sent again."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from components import background
from components.messaging.context import Context
from components.messaging.errors import MESSAGE_LIMIT, CallError, encode_error
from components.messaging.frames import END, ERROR, HEADROOM, ITEM, LAST, RESULT, WINDOW, pack, pack_sent
from components.messaging.links import CALLER_BEATS, Links
from components.messaging.wire import Wire

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[T, Context], Awaitable[Any] | AsyncIterator[Any]]

_UNFETCHED_SECONDS = 30.0
"""How long an error is kept for a caller that does not acknowledge it."""

_encode = msgspec.msgpack.Encoder().encode


class Callers(dict[str, "Caller"]):
    """Every caller of one service, by inbox; ``answers`` is how many they have together."""

    answers = 0


class Caller:
    """One caller whose requests run here, or whose answers it has not acknowledged yet."""

    def __init__(self, wire: Wire, links: Links, inbox: str, subject: str, callers: Callers) -> None:
        self.wire = wire
        self.frames_to = f"{inbox}.f"
        self.answers: dict[int, Answer] = {}
        self.link = links.open(self.frames_to, CALLER_BEATS, beat=self._beat, lost=self._lost)
        self._links = links
        self._inbox = inbox
        self._subject = subject
        self._callers = callers

    def _beat(self) -> bytes:
        return pack_sent(self._subject, [(number, answer.sent) for number, answer in self.answers.items()])

    def _lost(self, why: str) -> None:
        log.info("caller %s is dead; its %d requests here are cancelled", self._inbox, len(self.answers))
        self.forget()

    def stop(self, error: CallError) -> None:
        """Cut every running handler and tell the caller why."""
        for answer in list(self.answers.values()):
            answer.stop(error)

    def forget(self) -> None:
        """Cut every running handler and drop what is kept for the caller."""
        for answer in list(self.answers.values()):
            answer.close()

    def add(self, number: int, answer: Answer) -> None:
        self.answers[number] = answer
        self._callers.answers += 1

    def remove(self, number: int) -> None:
        del self.answers[number]
        self._callers.answers -= 1
        if not self.answers:
            self._links.close(self.link)
            del self._callers[self._inbox]


class Answer:
    """The numbered frames of one answer; those that the caller has not acknowledged are kept."""

    def __init__(self, caller: Caller, number: int, stage: str) -> None:
        self.sent = 0
        self._caller = caller
        self._number = number
        self._stage = stage
        self._kept: deque[bytes] = deque()
        self._allowed = WINDOW
        self._room: asyncio.Future[None] | None = None
        self._complete = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        caller.add(number, self)

    def start(self, handler: Handler[T], request: T, context: Context) -> asyncio.Task[None]:
        self._expire_in(context.remaining())
        self._task = background.task(self._run(handler, request, context), f"{self._stage}-{context.id}")
        return self._task

    def taken(self, received: int, allowed: int) -> None:
        """The caller has ``received`` frames and its reader has room for ``allowed`` in all.

        Raises ``ValueError`` if that cannot be: frames are kept until they have been received, so room beyond the
        window is memory that the caller takes from us.
        """
        if received > self.sent or allowed > received + WINDOW:
            raise ValueError(f"{received} frames received and {allowed} allowed, of {self.sent} sent")
        while self._kept and self.sent - len(self._kept) < received:
            self._kept.popleft()
        if allowed > self._allowed:
            self._allowed = allowed
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    def send_again(self, received: int) -> None:
        first = self.sent - len(self._kept)
        for index, frame in enumerate(self._kept, first):
            if index >= received:
                self._caller.wire.send(self._caller.frames_to, frame)

    def refuse(self, error: CallError) -> None:
        """Complete the answer with an error, before it was started."""
        self.fail(error)
        self._expire_in(_UNFETCHED_SECONDS)

    def fail(self, error: CallError) -> None:
        """Complete the answer with an error, unless it is complete already."""
        self._send(ERROR, encode_error(error, self._stage))

    def stop(self, error: CallError) -> None:
        """Complete the answer with an error and cancel the handler."""
        self.fail(error)
        self._cancel()

    def close(self) -> None:
        """The caller has done with it: send nothing more, keep nothing, cancel the handler if it still runs."""
        if self._closed:
            return
        self._closed = self._complete = True
        if self._timer is not None:
            self._timer.cancel()
        self._kept.clear()
        self._caller.remove(self._number)
        self._cancel()

    def _cancel(self) -> None:
        """Once: the caller of an answer that was stopped hangs up soon after, and would cut the cleaning up short."""
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()

    def _expire_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        """The caller does not wait any longer, whether or not it acknowledged what it got."""
        if self._complete:
            self.close()
        else:
            self.stop(CallError("deadline_exceeded", "the handler did not finish before the deadline"))
            self._expire_in(_UNFETCHED_SECONDS)

    async def _run(self, handler: Handler[T], request: T, context: Context) -> None:
        try:
            result = handler(request, context)
            if isinstance(result, AsyncGenerator):
                await self._send_items(result)
            elif isinstance(result, Awaitable):
                self._send(RESULT, self._encoded(await result))
            else:
                raise TypeError(f"{handler} is neither async def nor an async generator")
        except CallError as error:
            self.fail(error)
        except asyncio.CancelledError:
            # Nothing is sent if we cancelled it: then the answer is complete already.
            self.fail(CallError("cancelled", "the handler was cancelled"))
            raise
        except Exception as error:  # The boundary: whatever a handler raises must reach its caller.
            log.exception("a handler of %s failed", self._stage)
            self.fail(CallError("internal", f"{type(error).__name__}: {error}"[:MESSAGE_LIMIT]))

    async def _send_items(self, items: AsyncGenerator[Any, None]) -> None:
        async with aclosing(items):
            async for item in items:
                body = self._encoded(item)
                while self.sent >= self._allowed and not self._complete:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                if self._complete:
                    return
                self._send(ITEM, body)
        self._send(END, b"")

    def _encoded(self, item: Any) -> bytes:
        body = _encode(item)
        limit = self._caller.wire.max_payload - HEADROOM
        if len(body) > limit:
            raise CallError("internal", f"an answer of {len(body)} bytes; NATS carries at most {limit}")
        return body

    def _send(self, kind: int, body: bytes) -> None:
        if self._complete:
            return
        self._complete = kind in LAST
        frame = pack(kind, self._number, self.sent, body)
        self._kept.append(frame)
        self.sent += 1
        self._caller.wire.send(self._caller.frames_to, frame)
