"""The callee's side: operations, the requests that run, and what is sent back for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from nats.aio.msg import Msg

from components.messaging.addresses import call_number, split_reply
from components.messaging.answer import Answer, Caller, Callers, Handler
from components.messaging.context import Context
from components.messaging.errors import CallError, encode_error
from components.messaging.frames import ERROR, Kind, pack, pack_unknown, unpack_calls, unpack_repair, unpack_taken
from components.messaging.heart import Heart
from components.messaging.links import Links
from components.messaging.wire import Wire

log = logging.getLogger(__name__)

T = TypeVar("T")

CALLERS_LIMIT = 512
"""Most processes that may have calls open with one instance: each costs a heartbeat."""

ANSWERS_LIMIT = 8192
"""Most calls of one instance that run, or whose answers the callers have not acknowledged."""

_CLEANUP_SECONDS = 5.0
"""How long handlers that were cancelled may take to clean up before a drain stops waiting for them."""


@dataclass(frozen=True)
class Operation(Generic[T]):
    """``inner`` marks an operation that serves a request which already runs here.

    Neither capacity nor draining refuses it: refusing would make that request fail or wait for itself.
    """

    decoder: msgspec.msgpack.Decoder[T]
    handler: Handler[T]
    inner: bool = False


def operation(request: type[T], handler: Handler[T], *, inner: bool = False) -> Operation[T]:
    """Messages of type ``request`` answered by ``handler``: an ``async def`` or an async generator of structs.

    Handlers run on the event loop and must not block it: a blocked loop sends no heartbeats.
    """
    return Operation(msgspec.msgpack.Decoder(request), handler, inner)


class Service:
    """Answers the requests that come on one subject."""

    def __init__(
        self,
        wire: Wire,
        heart: Heart,
        links: Links,
        subject: str,
        stage: str,
        version: int,
        operations: Mapping[str, Operation[Any]],
        capacity: int | None,
    ) -> None:
        self.subject = subject
        self._wire = wire
        self._heart = heart
        self._links = links
        self._stage = stage
        self._version = version
        self._operations = operations
        self._capacity = capacity
        self._callers = Callers()
        self._tasks: set[asyncio.Task[None]] = set()
        self._occupied = 0
        self._draining = False
        self._subscribed: list[Callable[[], Awaitable[None]]] = []

    async def start(self, receive: Callable[[Msg], Awaitable[None]]) -> None:
        self._subscribed.append(await self._heart.answer(self.subject))
        self._subscribed.append(await self._wire.subscribe(self.subject, receive))

    @property
    def running(self) -> int:
        """Handlers at work, their cleanup included."""
        return len(self._tasks)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, let the running ones finish for so many ``seconds``, then cut what is left."""
        self._draining = True
        deadline = asyncio.get_running_loop().time() + seconds
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        await self.close()

    async def close(self) -> None:
        """Cut everything that runs, and stop listening."""
        self._draining = True
        for caller in list(self._callers.values()):
            caller.stop(CallError("unavailable", f"{self.subject} is stopping", stage=self._stage, retryable=True))
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLEANUP_SECONDS)
            if late:
                log.error("%d handlers still clean up after %g s", len(late), _CLEANUP_SECONDS)
        if self._wire.up:
            while self._subscribed:
                await self._subscribed.pop()()
            await self._wire.flush()
        self._subscribed.clear()
        for caller in list(self._callers.values()):
            caller.forget()

    def on_message(self, msg: Msg) -> None:
        """A message from a caller. Raises ``ValueError`` or ``struct.error`` if it is malformed."""
        inbox, token = split_reply(msg.reply)
        if msg.headers:
            self._on_request(msg, inbox, call_number(token))
        else:
            self._on_control(msg.data, inbox)

    def _on_request(self, msg: Msg, inbox: str, number: int) -> None:
        caller = self._callers.get(inbox)
        if caller is not None:
            caller.link.heard()
            if number in caller.answers:
                return  # Sent again, and the first one was not lost after all.
        if self._full(caller):
            # Nothing is kept of it, not even this error: if that gets lost, the caller asks again.
            error = CallError("overloaded", f"{self.subject} holds as many calls as it can", retryable=True)
            self._wire.send(f"{inbox}.f", pack(ERROR, number, 0, encode_error(error, self._stage)))
            return
        if caller is None:
            caller = self._callers[inbox] = Caller(self._wire, self._links, inbox, self.subject, self._callers)
        answer = Answer(caller, number, self._stage)
        try:
            operation, request, context = self._admit(msg)
        except CallError as error:
            answer.refuse(error)
            return
        task = answer.start(operation.handler, request, context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not operation.inner:
            self._occupied += 1
            task.add_done_callback(self._vacate)

    def _full(self, caller: Caller | None) -> bool:
        """Whether this process would have to keep more than it has room for, whatever the handlers may bear."""
        return self._callers.answers >= ANSWERS_LIMIT or (caller is None and len(self._callers) >= CALLERS_LIMIT)

    def _vacate(self, _: asyncio.Task[None]) -> None:
        self._occupied -= 1

    def _admit(self, msg: Msg) -> tuple[Operation[Any], Any, Context]:
        headers = msg.headers or {}
        version = headers.get("version", "")
        if version != str(self._version):
            raise CallError(
                "unavailable",
                f"{self.subject} speaks protocol version {self._version}, the caller {version[:20] or 'none'}",
                retryable=True,
            )
        name = headers.get("operation", "")
        operation = self._operations.get(name)
        if operation is None:
            known = ", ".join(self._operations)
            raise CallError("invalid_request", f"no operation {name[:50]!r} here; there is: {known}")
        try:
            context = Context.from_headers(headers)
            request = operation.decoder.decode(msg.data)
        except ValueError as error:
            raise CallError("invalid_request", f"not a valid {name} request: {error}") from None
        if not context.remaining():
            raise CallError("deadline_exceeded", "the deadline had passed when the request arrived")
        if not operation.inner:
            if self._draining:
                raise CallError("unavailable", f"{self.subject} is stopping", retryable=True)
            if self._capacity is not None and self._occupied >= self._capacity:
                raise CallError("overloaded", f"{self.subject} works on {self._occupied} requests", retryable=True)
        return operation, request, context

    def _on_control(self, data: bytes, inbox: str) -> None:
        kind = data[0] if data else 0
        caller = self._callers.get(inbox)
        answers = caller.answers if caller is not None else {}
        if caller is not None:
            caller.link.heard()
        if kind == Kind.TAKEN:
            unknown = []
            for number, received, allowed in unpack_taken(data):
                answer = answers.get(number)
                if answer is None:
                    unknown.append(number)
                else:
                    answer.taken(received, allowed)
            if unknown:
                self._wire.send(f"{inbox}.f", pack_unknown(unknown))
        elif kind == Kind.REPAIR:
            number, received = unpack_repair(data)
            answer = answers.get(number)
            if answer is not None:
                answer.send_again(received)
        elif kind == Kind.CLOSE:
            for number in unpack_calls(data):
                answer = answers.get(number)
                if answer is not None:
                    answer.close()
        else:
            raise ValueError(f"unknown frame kind {kind}")
