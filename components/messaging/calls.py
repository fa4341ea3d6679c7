"""The caller's side: open calls, and the stream of answers that each one reads."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Generic, Self, TypeVar

import msgspec

from components.messaging.addresses import CALL_LIMIT, call_token
from components.messaging.context import Context
from components.messaging.errors import CallError, NobodyListens, decode_error
from components.messaging.frames import (
    END,
    ERROR,
    HEADROOM,
    LAST,
    WINDOW,
    Kind,
    pack_close,
    pack_repair,
    pack_taken,
    unpack,
    unpack_calls,
    unpack_sent,
)
from components.messaging.links import CALLEE_BEATS, Links
from components.messaging.wire import Wire

T = TypeVar("T")


class Calls:
    """Every open call of one bus, by number."""

    def __init__(self, wire: Wire, links: Links, version: int) -> None:
        self.wire = wire
        self.links = links
        self.version = version
        self._open: dict[int, Call] = {}
        self._callees: dict[str, _Callee] = {}
        self._last = -1
        self._unheard: list[Call] = []

    def __len__(self) -> int:
        return len(self._open)

    def open(self, call: Call, subject: str) -> tuple[int, _Callee]:
        callee = self._callees.get(subject)
        if callee is None:
            callee = self._callees[subject] = _Callee(self, subject)
        number = self._last = self._free_number()
        self._open[number] = callee.calls[number] = call
        return number, callee

    def _free_number(self) -> int:
        number = (self._last + 1) % CALL_LIMIT
        while number in self._open:
            number = (number + 1) % CALL_LIMIT
        return number

    def close(self, number: int, callee: _Callee) -> None:
        del self._open[number]
        del callee.calls[number]
        if not callee.calls:
            self.links.close(callee.link)
            del self._callees[callee.subject]

    def close_all(self) -> None:
        for call in list(self._open.values()):
            call.fail(CallError("cancelled", "this process closed its connection", stage=call.stage))

    def refused(self, number: int) -> None:
        """NATS says that nobody listens on the subject that the call's request was sent to."""
        call = self._open.get(number)
        if call is None or call.received:
            return
        if self.links.settling:
            self._unheard.append(call)
            return
        call.fail(NobodyListens("unavailable", f"nobody answers on {call.subject}", stage=call.stage, retryable=True))

    def ask_again(self) -> None:
        """Sends the requests that found nobody while the other side had not returned to NATS yet."""
        unheard, self._unheard = self._unheard, []
        for call in unheard:
            call.request()

    def on_frame(self, data: bytes) -> None:
        """A frame from a callee. Raises ``ValueError`` or ``struct.error`` if it is malformed."""
        kind = data[0] if data else 0
        if kind <= ERROR:
            kind, number, index, body = unpack(data)
            call = self._open.get(number)
            if call is not None:
                call.on_frame(kind, index, body)
        elif kind == Kind.SENT:
            self._on_sent(*unpack_sent(data))
        elif kind == Kind.UNKNOWN:
            for number in unpack_calls(data):
                if number in self._open:
                    self._open[number].forgotten()
        else:
            raise ValueError(f"unknown frame kind {kind}")

    def _on_sent(self, subject: str, calls: list[tuple[int, int]]) -> None:
        callee = self._callees.get(subject)
        if callee is not None:
            callee.link.heard()
        done = []
        for number, sent in calls:
            call = self._open.get(number)
            if call is None:
                done.append(number)
            elif sent > call.received:
                call.repair()
        if done:
            self.wire.send(subject, pack_close(done), reply=f"{self.wire.inbox}.done")


class _Callee:
    """One instance that calls are open with."""

    def __init__(self, owner: Calls, subject: str) -> None:
        self.subject = subject
        self.calls: dict[int, Call] = {}
        self.link = owner.links.open(subject, CALLEE_BEATS, beat=self._beat, lost=self._lost)

    def _beat(self) -> bytes:
        for call in self.calls.values():
            call.repair_asked = -1
        return pack_taken([(number, call.received, call.allowed) for number, call in self.calls.items()])

    def _lost(self, why: str) -> None:
        message = f"{self.subject} is dead: {why}"
        for call in list(self.calls.values()):
            call.fail(CallError("peer_lost", message, stage=call.stage, retryable=True))


class Call:
    """One request and what has come back of its answer."""

    def __init__(
        self, owner: Calls, subject: str, operation: str, payload: bytes, context: Context, stage: str
    ) -> None:
        self.subject = subject
        self.stage = stage
        self.received = 0
        self.allowed = WINDOW
        self.repair_asked = -1
        self.started = False
        self.done = False
        self._owner = owner
        self._operation = operation
        self._payload = payload
        self._context = context
        self._items: deque[memoryview] = deque()
        self._taken = 0
        self._error: CallError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Raises ``CallError`` if the request cannot be sent at all."""
        self.started = True
        remaining = self._context.remaining()
        limit = self._owner.wire.max_payload - HEADROOM
        if not remaining:
            self.done = True
            raise CallError("deadline_exceeded", "the deadline had passed before the call", stage=self.stage)
        if len(self._payload) > limit:
            self.done = True
            raise CallError(
                "body_too_large",
                f"a {self._operation} request of {len(self._payload)} bytes; NATS carries at most {limit}",
                stage=self.stage,
            )
        self._number, self._callee = self._owner.open(self, self.subject)
        self._timer = asyncio.get_running_loop().call_later(remaining, self._expire)
        self.request()

    def request(self) -> None:
        """Send the request; again, if it got lost."""
        if self.done:
            return
        headers = {"operation": self._operation, "version": str(self._owner.version), **self._context.headers()}
        reply = f"{self._owner.wire.inbox}.{call_token(self._number)}"
        self._owner.wire.send(self.subject, self._payload, reply=reply, headers=headers)

    async def take(self) -> memoryview | None:
        """The next item, or None after the last. Raises the ``CallError`` that ended the answer."""
        while not self._items:
            if self.done:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                self._waiter = None
        self._taken += 1
        if not self.done and self.allowed - self._taken <= WINDOW // 2:
            self.allowed = self._taken + WINDOW
            self._send(pack_taken([(self._number, self.received, self.allowed)]))
        return self._items.popleft()

    def on_frame(self, kind: int, index: int, body: memoryview) -> None:
        self._callee.link.heard()
        if index != self.received:
            # Lower: it was sent again, and the first one had come after all. Higher: something is missing.
            if index > self.received:
                self.repair()
            return
        self.received += 1
        if kind == ERROR:
            self._error = self._decoded_error(body)
        elif kind != END:
            self._items.append(body)
        if kind in LAST:
            self._finish(tell=False)
        self._wake()

    def _decoded_error(self, body: memoryview) -> CallError:
        try:
            return decode_error(body)
        except ValueError:
            return CallError("internal", f"{self.subject} failed, and its error cannot be read", stage=self.stage)

    def repair(self) -> None:
        """Ask for everything from the first missing frame on; once for each gap and beat."""
        if self.repair_asked != self.received:
            self.repair_asked = self.received
            self._send(pack_repair(self._number, self.received))

    def forgotten(self) -> None:
        """The callee does not know this call."""
        if self.received == 0:
            self.request()
        else:
            self.fail(CallError("peer_lost", f"{self.subject} lost this call", stage=self.stage, retryable=True))

    def fail(self, error: CallError) -> None:
        """End the call from this side; what has been received stays readable."""
        if not self.done:
            self._error = error
            self._finish(tell=True)
            self._wake()

    def cancel(self) -> None:
        """The reader has gone: drop everything and tell the callee."""
        if not self.started:
            self.started = self.done = True
        elif not self.done:
            self._finish(tell=True)
        self._items.clear()
        self._error = None
        self._wake()

    def _expire(self) -> None:
        self._items.clear()
        self.fail(CallError("deadline_exceeded", "no complete answer before the deadline", stage=self.stage))

    def _finish(self, *, tell: bool) -> None:
        self.done = True
        self._timer.cancel()
        if tell:
            self._send(pack_close([self._number]))
        self._owner.close(self._number, self._callee)

    def _send(self, frame: bytes) -> None:
        self._owner.links.send(self._callee.link, frame)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream(Generic[T]):
    """The answer to a call, item by item; the request is sent when the first is asked for.

    Leaving the loop early, ``aclose`` or cancelling the reading task cancels the handler on the other side. The same
    happens when the stream is dropped, so ``async for item in bus.stream(…)`` may be left by ``break``.
    """

    def __init__(self, call: Call, decoder: msgspec.msgpack.Decoder[T], reply: Any) -> None:
        self._call = call
        self._decoder = decoder
        self._reply = reply
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        call = self._call
        if not call.started:
            call.start()
        body = await call.take()
        if body is None:
            raise StopAsyncIteration
        try:
            return self._decoder.decode(body)
        except msgspec.DecodeError as error:
            call.cancel()
            name = getattr(self._reply, "__name__", str(self._reply))
            raise CallError("internal", f"the answer is not a {name}: {error}", stage=call.stage) from None

    async def aclose(self) -> None:
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    def __del__(self) -> None:
        # The garbage collector may run on any thread; the call belongs to the loop's.
        if self._call.started and not self._call.done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._call.cancel)
