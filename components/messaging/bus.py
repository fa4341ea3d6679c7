"""A process's end of the request plane: it calls others and serves operations over one NATS connection."""

from __future__ import annotations

import asyncio
import functools
import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import UnionType
from typing import Any, Self, TypeVar, overload

import msgspec
from nats.aio.msg import Msg

from components import aio, background
from components.messaging.addresses import call_number
from components.messaging.calls import Call, Calls, Stream
from components.messaging.context import Context
from components.messaging.errors import CallError
from components.messaging.frames import HEADROOM
from components.messaging.heart import BEAT, Heart
from components.messaging.links import Links
from components.messaging.metrics import DROPPED
from components.messaging.seldom import Seldom
from components.messaging.service import Operation, Service
from components.messaging.wire import Wire, check_subject

log = logging.getLogger(__name__)

T = TypeVar("T")

_ECHO = "echo"
"""The part of the inbox where this bus hears itself; every other part has a shorter name."""

_malformed = Seldom(log)
_encode = msgspec.msgpack.Encoder().encode


@functools.cache
def _decoder(reply: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(reply)


class Bus:
    """Create with ``connect``. ``version`` is the protocol's: a service refuses requests of another one."""

    def __init__(self, wire: Wire, heart: Heart, version: int) -> None:
        self._wire = wire
        self._heart = heart
        self._version = version
        self._links = Links(wire, heart)
        self._calls = Calls(wire, self._links, version)
        self._services: list[Service] = []
        self._beating = background.task(self._beat(), "messaging-heartbeat")

    @classmethod
    async def connect(cls, servers: Sequence[str], *, name: str, version: int = 1, wait: float = 30.0) -> Self:
        """Waits up to ``wait`` seconds for NATS, then raises ``ConnectionError``.

        Once connected it reconnects for ever; calls that run meanwhile go on where they were.
        """
        async with AsyncExitStack() as stack:
            wire = await Wire.connect(servers, name=name, wait=wait)
            stack.push_async_callback(wire.close)
            heart = await Heart.start(servers, name=name, wait=wait)
            stack.push_async_callback(heart.close)
            await heart.answer(f"{wire.inbox}.f")
            bus = cls(wire, heart, version)
            wire.on_reconnect = bus._links.reconnected
            await wire.subscribe(f"{wire.inbox}.*", bus._on_inbox)
            stack.pop_all()
        return bus

    async def close(self) -> None:
        """End every call and service, and the connection."""
        for service in self._services:
            await service.close()
        self._calls.close_all()
        if self._wire.up:
            await self._wire.flush()
        await aio.end(self._beating)
        await self._heart.close()
        await self._wire.close()

    @property
    def connected(self) -> bool:
        """Whether NATS is there right now."""
        return self._wire.up

    @property
    def largest_request(self) -> int:
        """Bytes that a request may have, as NATS was set up."""
        return self._wire.max_payload - HEADROOM

    @property
    def open_calls(self) -> int:
        """Calls that wait for the rest of their answer."""
        return len(self._calls)

    @property
    def peers(self) -> int:
        """Other processes that a call is open with, in either direction."""
        return len(self._links)

    async def serve(
        self, subject: str, *, stage: str, operations: Mapping[str, Operation[Any]], capacity: int | None = None
    ) -> Service:
        """Answer ``operations`` on ``subject``, which is this instance's alone.

        ``stage`` is the name that errors from here carry. More than ``capacity`` requests at once are refused as
        ``overloaded``; None leaves that to the handlers.
        """
        check_subject(subject)
        service = Service(self._wire, self._heart, self._links, subject, stage, self._version, operations, capacity)
        await service.start(functools.partial(_receive, service.on_message))
        self._services.append(service)
        return service

    @overload
    def stream(
        self, subject: str, operation: str, request: object, *, reply: type[T], context: Context, stage: str = ""
    ) -> Stream[T]: ...

    @overload
    def stream(
        self, subject: str, operation: str, request: object, *, reply: UnionType, context: Context, stage: str = ""
    ) -> Stream[Any]: ...

    def stream(
        self, subject: str, operation: str, request: object, *, reply: Any, context: Context, stage: str = ""
    ) -> Stream[Any]:
        """The answer item by item, each a ``reply``; ``stage`` is what errors found on this side are attributed to."""
        check_subject(subject)
        call = Call(self._calls, subject, operation, _encode(request), context, stage)
        return Stream(call, _decoder(reply), reply)

    @overload
    async def call(
        self, subject: str, operation: str, request: object, *, reply: type[T], context: Context, stage: str = ""
    ) -> T: ...

    @overload
    async def call(
        self, subject: str, operation: str, request: object, *, reply: UnionType, context: Context, stage: str = ""
    ) -> Any: ...

    async def call(
        self, subject: str, operation: str, request: object, *, reply: Any, context: Context, stage: str = ""
    ) -> Any:
        """The answer of an operation that has exactly one."""
        stream = self.stream(subject, operation, request, reply=reply, context=context, stage=stage)
        try:
            async for item in stream:
                return item
        finally:
            await stream.aclose()
        raise CallError("internal", f"{subject} ended {operation} without an answer", stage=stage)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            if not self._wire.up:
                continue
            self._links.tick()
            self._calls.ask_again()
            self._wire.send(f"{self._wire.inbox}.{_ECHO}", b"")

    async def _on_inbox(self, msg: Msg) -> None:
        if msg.subject.endswith(_ECHO):
            self._heart.loop_turned()
            return
        if not msg.headers:
            await _receive(lambda msg: self._calls.on_frame(msg.data), msg)
            return
        if msg.headers.get("Status") != "503":
            return
        token = msg.subject.rpartition(".")[2]
        if token.startswith("r"):
            await _receive(lambda _: self._calls.refused(call_number(token)), msg)
        else:
            self._links.refused(token)


async def _receive(handle: Callable[[Msg], None], msg: Msg) -> None:
    """Hands a message over; one that is not of this protocol is dropped, and harms nothing."""
    try:
        handle(msg)
    except (ValueError, struct.error) as error:
        DROPPED.inc()
        _malformed.warning("dropped a malformed message on %s: %s", msg.subject[:100], str(error)[:200])
