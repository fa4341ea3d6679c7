"""A slow reader slows its own stream, and nothing else."""

from __future__ import annotations

import asyncio
import time

from components.messaging import Bus, CallError, Context
from components.messaging.frames import WINDOW
from tests.messaging.example import STAGE, SUBJECT, Ask, Example, Item, Number, Text
from tests.servers import until


async def test_the_handler_waits_for_its_reader_and_others_do_not(caller: Bus, callee: Bus) -> None:
    slow, fast = Example(), Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=slow.operations)
    await callee.serve("triptych.test.panel.two", stage=STAGE, operations=fast.operations)
    stream = caller.stream(SUBJECT, "count", Ask(1000), reply=Item, context=Context.new(20))
    assert await anext(stream) == Number(0)
    await until(lambda: slow.made >= WINDOW)

    other = caller.stream("triptych.test.panel.two", "count", Ask(5000), reply=Item, context=Context.new(20))
    assert len([item async for item in other]) == 5000
    # One more than the window may have been made: it waits in the handler's hand.
    assert slow.made <= WINDOW + 2

    assert [item async for item in stream] == [Number(value) for value in range(1, 1000)]


async def test_a_stalled_reader_can_still_be_cancelled(caller: Bus, callee: Bus) -> None:
    example = Example()
    service = await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    async with caller.stream(SUBJECT, "count", Ask(1000), reply=Item, context=Context.new(20)) as stream:
        await anext(stream)
        await until(lambda: example.made >= WINDOW)
    await until(lambda: service.running == 0)
    assert example.events[-1] == "cleaned"


async def test_a_frame_costs_little(caller: Bus, callee: Bus) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    began = time.process_time()  # CPU time, both sides together: a busy machine does not make it more.
    stream = caller.stream(SUBJECT, "count", Ask(5000), reply=Item, context=Context.new(60))
    assert len([item async for item in stream]) == 5000
    assert (time.process_time() - began) / 5000 < 100e-6


async def test_a_drain_waits_for_what_runs_and_refuses_what_comes(caller: Bus, callee: Bus) -> None:
    example = Example()
    service = await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    stream = caller.stream(SUBJECT, "count", Ask(50, seconds=0.01), reply=Item, context=Context.new(20))
    await anext(stream)
    draining = asyncio.create_task(service.drain(20))
    await asyncio.sleep(0)
    assert await refused(caller, "echo") == "unavailable"
    assert await caller.call(SUBJECT, "inside", Ask(1, text="in"), reply=Text, context=Context.new(5)) == Text("in")
    assert len([item async for item in stream]) == 49
    await draining
    assert example.events == ["begun", "ended", "cleaned"]
    assert await refused(caller, "echo") == "unavailable"


async def test_a_drain_cuts_what_does_not_end(caller: Bus, callee: Bus) -> None:
    example = Example()
    service = await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    task = asyncio.create_task(refused(caller, "hang"))
    await until(lambda: example.events == ["begun"])
    await service.drain(0.1)
    assert await task == "unavailable"
    assert example.events == ["begun", "cancelled"]
    assert service.running == 0


async def refused(bus: Bus, operation: str) -> str:
    try:
        await bus.call(SUBJECT, operation, Ask(1), reply=Text, context=Context.new(10))
    except CallError as error:
        assert error.retryable
        return error.code
    return ""
