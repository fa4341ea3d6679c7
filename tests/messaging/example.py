"""A small service whose handlers say what happens to them; in the test's process, or in one of its own.

``python -m tests.messaging.example callee URL`` serves it, ``… caller URL`` reads from it for ever.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from components.messaging import Bus, CallError, Context, Operation, operation
from components.runtime.servers import NatsServer
from tests.servers import until

SUBJECT = "triptych.test.panel.one"
STAGE = "panel"


class Ask(msgspec.Struct, frozen=True):
    """``count`` items, one every ``seconds``."""

    count: int
    seconds: float = 0.0
    text: str = ""


class Number(msgspec.Struct, frozen=True, tag="number"):
    value: int


class Text(msgspec.Struct, frozen=True, tag="text"):
    value: str


Item = Number | Text


class Example:
    """``made`` counts the numbers that were asked of the generator; ``events`` is what happened to the handlers."""

    def __init__(self) -> None:
        self.made = 0
        self.events: list[str] = []
        self.contexts: list[Context] = []
        self.hold = asyncio.Event()

    @property
    def operations(self) -> Mapping[str, Operation[Any]]:
        return {
            "echo": operation(Ask, self.echo),
            "count": operation(Ask, self.count),
            "hang": operation(Ask, self.hang),
            "block": operation(Ask, self.block),
            "fail": operation(Ask, self.fail),
            "refuse": operation(Ask, self.refuse),
            "inside": operation(Ask, self.echo, inner=True),
        }

    def say(self, event: str) -> None:
        self.events.append(event)
        if __name__ == "__main__":
            print(event, flush=True)

    async def echo(self, request: Ask, context: Context) -> Text:
        self.contexts.append(context)
        return Text(request.text)

    async def count(self, request: Ask, context: Context) -> AsyncGenerator[Number, None]:
        self.say("begun")
        try:
            for value in range(request.count):
                if request.seconds:
                    await asyncio.sleep(request.seconds)
                self.made += 1
                yield Number(value)
            self.say("ended")
        except asyncio.CancelledError:
            self.say("cancelled")
            raise
        finally:
            await asyncio.sleep(0)  # Cleanup may wait.
            self.say("cleaned")

    async def hang(self, request: Ask, context: Context) -> Text:
        self.say("begun")
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.say("cancelled")
            raise
        return Text(request.text)

    async def block(self, request: Ask, context: Context) -> Text:
        """Holds the event loop, not the interpreter, as a native library does."""
        self.say("blocked")
        time.sleep(request.seconds)  # noqa: ASYNC251 - that is what it is for
        return Text(request.text)

    async def fail(self, request: Ask, context: Context) -> Text:
        raise RuntimeError(request.text)

    async def refuse(self, request: Ask, context: Context) -> Text:
        raise CallError("image_undecodable", request.text, param="image")


@asynccontextmanager
async def fresh_bus(nats: NatsServer) -> AsyncIterator[Bus]:
    """A bus that must have nothing left when the test is over: no call, no peer, no task."""
    bus = await Bus.connect([nats.url], name="test")
    yield bus
    await until(lambda: bus.open_calls == 0 and bus.peers == 0 and _handlers() == [])
    await bus.close()


def _handlers() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(f"{STAGE}-")]


async def _callee(url: str) -> None:
    bus = await Bus.connect([url], name="callee")
    await bus.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def _caller(url: str) -> None:
    bus = await Bus.connect([url], name="caller")
    request = Ask(count=10**9, seconds=0.01)
    async for _ in bus.stream(SUBJECT, "count", request, reply=Item, context=Context.new(60)):
        pass


if __name__ == "__main__":
    asyncio.run({"callee": _callee, "caller": _caller}[sys.argv[1]](sys.argv[2]))
