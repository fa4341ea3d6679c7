"""Processes die, freeze and come back; NATS goes away and comes back; messages get lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from components.messaging import Bus, CallError, Context, heart
from components.messaging.heart import BEAT
from components.messaging.links import CALLEE_BEATS, CALLER_BEATS
from components.messaging.wire import Wire
from components.runtime.servers import NatsServer
from tests.messaging.example import STAGE, SUBJECT, Ask, Example, Item, Number, Text, fresh_bus
from tests.servers import process, until

MODULE = "tests.messaging.example"
ENDLESS = Ask(count=10**9, seconds=0.01)


@pytest.fixture
async def caller(nats: NatsServer) -> AsyncIterator[Bus]:
    async with fresh_bus(nats) as bus:
        yield bus


@pytest.fixture
async def callee(nats: NatsServer) -> AsyncIterator[Bus]:
    async with fresh_bus(nats) as bus:
        yield bus


@pytest.mark.parametrize(
    ("number", "why"),
    [(signal.SIGKILL, "nobody listens there"), (signal.SIGSTOP, "no sign of life for 6 beats (1.5 s)")],
)
async def test_a_callee_that_dies_or_freezes_is_noticed(
    nats: NatsServer, caller: Bus, number: signal.Signals, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with process(MODULE, "callee", nats.url) as callee:
        assert await callee.line() == "ready"
        stream = caller.stream(SUBJECT, "count", ENDLESS, reply=Item, context=Context.new(30), stage="panel")
        for value in range(5):
            assert await anext(stream) == Number(value)
        callee.signal(number)
        began = time.monotonic()
        with pytest.raises(CallError) as caught:
            async for _ in stream:
                pass
        assert (caught.value.code, caught.value.stage, caught.value.retryable) == ("peer_lost", "panel", True)
        assert time.monotonic() - began < 2.0
        assert why in caught.value.message
        assert deaths(caplog) == [f"{SUBJECT} is dead: {caught.value.message.partition(': ')[2]}"]


async def test_a_callee_whose_event_loop_is_busy_is_not_dead(
    nats: NatsServer, caller: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async with process(MODULE, "callee", nats.url) as callee:
        assert await callee.line() == "ready"
        stream = caller.stream(SUBJECT, "count", Ask(20, seconds=0.01), reply=Item, context=Context.new(30))
        await anext(stream)
        # Twice as long as silence is borne.
        seconds = 2 * CALLEE_BEATS * BEAT
        block = caller.call(SUBJECT, "block", Ask(1, seconds, "a"), reply=Text, context=Context.new(30))
        assert await block == Text("a")
        assert [item async for item in stream] == [Number(value) for value in range(1, 20)]
        assert deaths(caplog) == []


async def test_a_callee_whose_event_loop_hangs_for_good_is_dead(
    nats: NatsServer, caller: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heart, "STUCK_BEATS", CALLEE_BEATS + 2)
    async with process(MODULE, "callee", nats.url) as callee:
        assert await callee.line() == "ready"
        began = time.monotonic()
        with pytest.raises(CallError) as caught:
            await caller.call(SUBJECT, "block", Ask(1, 3600), reply=Text, context=Context.new(30))
        assert (caught.value.code, caught.value.retryable) == ("peer_lost", True)
        assert "event loop has stood still" in caught.value.message
        assert (CALLEE_BEATS + 1) * BEAT < time.monotonic() - began < 10
        assert len(deaths(caplog)) == 1


async def test_a_nats_that_was_away_for_long_does_not_make_the_event_loops_look_stuck(
    nats: NatsServer, caller: Bus, callee: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heart, "STUCK_BEATS", 4)
    example = Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    hanging = asyncio.create_task(caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(30)))
    await until(lambda: example.events == ["begun"])
    assert nats.pid is not None
    os.kill(nats.pid, signal.SIGSTOP)
    resumed = asyncio.Event()

    def resume() -> None:
        assert nats.pid is not None
        os.kill(nats.pid, signal.SIGCONT)
        resumed.set()

    asyncio.get_running_loop().call_later(8 * BEAT, resume)
    await resumed.wait()
    await caller.call(SUBJECT, "echo", Ask(1), reply=Text, context=Context.new(5))
    example.hold.set()
    assert await hanging == Text("")
    assert deaths(caplog) == []


def deaths(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "is dead" in record.message and record.levelno > 20]


async def test_a_callee_that_was_frozen_drops_the_calls_that_were_given_up(nats: NatsServer, caller: Bus) -> None:
    async with process(MODULE, "callee", nats.url) as callee:
        assert await callee.line() == "ready"
        stream = caller.stream(SUBJECT, "count", ENDLESS, reply=Item, context=Context.new(30))
        await anext(stream)
        callee.signal(signal.SIGSTOP)
        with pytest.raises(CallError):
            async for _ in stream:
                pass
        callee.signal(signal.SIGCONT)
        assert [await callee.line() for _ in range(3)] == ["begun", "cancelled", "cleaned"]
        assert await caller.call(SUBJECT, "echo", Ask(1, text="a"), reply=Text, context=Context.new(5)) == Text("a")


async def test_a_short_freeze_harms_nobody(nats: NatsServer, caller: Bus) -> None:
    async with process(MODULE, "callee", nats.url) as callee:
        assert await callee.line() == "ready"
        stream = caller.stream(SUBJECT, "count", Ask(50, seconds=0.01), reply=Item, context=Context.new(30))
        await anext(stream)
        callee.signal(signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.7, callee.signal, signal.SIGCONT)
        assert [item async for item in stream] == [Number(value) for value in range(1, 50)]


async def test_a_stalled_caller_does_not_take_its_own_silence_for_the_callees(nats: NatsServer, caller: Bus) -> None:
    async with process(MODULE, "callee", nats.url) as callee:
        assert await callee.line() == "ready"
        example = caller.stream(SUBJECT, "count", Ask(150, seconds=0.01), reply=Item, context=Context.new(30))
        await anext(example)
        # Shorter than the callee's patience with us, which hears nothing meanwhile either.
        time.sleep(1.2)  # noqa: ASYNC251 - the blocked event loop is what is tested
        assert len([item async for item in example]) == 149


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_caller_that_dies_or_freezes_ends_its_handlers(
    nats: NatsServer, callee: Bus, number: signal.Signals
) -> None:
    example = Example()
    service = await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    async with process(MODULE, "caller", nats.url) as caller:
        await until(lambda: example.made > 5, 15)
        caller.signal(number)
        began = time.monotonic()
        await until(lambda: service.running == 0)
        assert time.monotonic() - began < 4.5
        assert "ended" not in example.events
        assert example.events[-1] == "cleaned"


async def test_a_restart_of_nats_loses_nothing(nats: NatsServer, caller: Bus, callee: Bus) -> None:
    example = Example()
    service = await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)

    async def read() -> list[Item]:
        stream = caller.stream(SUBJECT, "count", Ask(1500, seconds=0.001), reply=Item, context=Context.new(30))
        return [item async for item in stream]

    readers = [asyncio.create_task(read()) for _ in range(8)]
    await until(lambda: example.made > 400)
    await nats.kill()
    waiting = asyncio.create_task(caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(30)))
    await until(lambda: not caller.connected and not callee.connected)
    await nats.start()
    for reader in readers:
        assert await reader == [Number(value) for value in range(1500)]
    example.hold.set()
    assert await waiting == Text("")
    assert example.events.count("begun") == 9
    await until(lambda: service.running == 0)


async def test_a_nats_that_stalls_is_not_taken_for_a_peer_that_died(nats: NatsServer, caller: Bus, callee: Bus) -> None:
    example = Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    stream = caller.stream(SUBJECT, "count", Ask(100, seconds=0.01), reply=Item, context=Context.new(30))
    await anext(stream)
    assert nats.pid is not None
    os.kill(nats.pid, signal.SIGSTOP)
    # Longer than either side's patience with the other.
    asyncio.get_running_loop().call_later((CALLER_BEATS + 2) * BEAT, os.kill, nats.pid, signal.SIGCONT)
    assert [item async for item in stream] == [Number(value) for value in range(1, 100)]
    assert example.events == ["begun", "ended", "cleaned"]


async def test_calls_right_after_a_restart_find_a_callee_that_returns_later(
    nats: NatsServer, caller: Bus, callee: Bus
) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    for _ in range(3):
        await nats.restart()
        await until(lambda: caller.connected)
        assert await caller.call(SUBJECT, "echo", Ask(1, text="a"), reply=Text, context=Context.new(5)) == Text("a")


@pytest.mark.parametrize("seed", range(3))
async def test_any_message_may_get_lost(caller: Bus, callee: Bus, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A tenth of all messages vanish, in both directions: requests, items, ends, credits, heartbeats."""
    example = Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    send, dice = Wire.send, random.Random(seed)

    def lossy(wire: Wire, subject: str, payload: bytes, **rest: Any) -> None:
        if dice.random() > 0.1:
            send(wire, subject, payload, **rest)

    monkeypatch.setattr(Wire, "send", lossy)

    async def read(count: int) -> list[Item]:
        stream = caller.stream(SUBJECT, "count", Ask(count), reply=Item, context=Context.new(30))
        return [item async for item in stream]

    counts = [0, 1, 5, 30, 64, 65, 100, 200]
    answers = await asyncio.gather(*(read(count) for count in counts))
    assert answers == [[Number(value) for value in range(count)] for count in counts]
    assert example.events.count("begun") == len(counts)
    monkeypatch.undo()
