"""Whoever stops reading stops the handler; whoever runs out of time stops both."""

from __future__ import annotations

import asyncio
import gc

import pytest

from components.messaging import Bus, CallError, Context, operation
from tests.messaging.example import STAGE, SUBJECT, Ask, Example, Item, Number, Text
from tests.servers import until

ENDLESS = Ask(count=10**9, seconds=0.002)


@pytest.fixture
async def example(callee: Bus) -> Example:
    example = Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    return example


async def handler_cleaned_up(example: Example) -> None:
    await until(lambda: example.events[-1:] == ["cleaned"])
    assert "ended" not in example.events


async def test_break_cancels_the_handler(caller: Bus, example: Example) -> None:
    async for item in caller.stream(SUBJECT, "count", ENDLESS, reply=Item, context=Context.new(10)):
        if item == Number(3):
            break
    await handler_cleaned_up(example)


async def test_aclose_cancels_the_handler_and_ends_the_stream(caller: Bus, example: Example) -> None:
    stream = caller.stream(SUBJECT, "count", ENDLESS, reply=Item, context=Context.new(10))
    assert await anext(stream) == Number(0)
    await stream.aclose()
    await stream.aclose()
    assert [item async for item in stream] == []
    await handler_cleaned_up(example)


async def test_leaving_the_block_cancels_the_handler(caller: Bus, example: Example) -> None:
    with pytest.raises(ZeroDivisionError):
        async with caller.stream(SUBJECT, "count", ENDLESS, reply=Item, context=Context.new(10)) as stream:
            assert await anext(stream) == Number(0)
            raise ZeroDivisionError
    await handler_cleaned_up(example)


async def test_dropping_a_stream_cancels_the_handler(caller: Bus, example: Example) -> None:
    stream = caller.stream(SUBJECT, "count", ENDLESS, reply=Item, context=Context.new(10))
    assert await anext(stream) == Number(0)
    cycle: list[object] = [stream]
    cycle.append(cycle)
    del stream, cycle
    # On another thread, as the collector may run anywhere.
    await asyncio.to_thread(gc.collect)
    await handler_cleaned_up(example)


async def test_a_stream_that_nobody_reads_asks_for_nothing(caller: Bus, example: Example) -> None:
    stream = caller.stream(SUBJECT, "count", ENDLESS, reply=Item, context=Context.new(10))
    await stream.aclose()
    assert [item async for item in stream] == []
    await caller.call(SUBJECT, "echo", Ask(1), reply=Text, context=Context.new(10))
    assert example.events == []


async def test_cancelling_the_reader_cancels_the_handler(caller: Bus, example: Example) -> None:
    task = asyncio.create_task(caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(10)))
    await until(lambda: example.events == ["begun"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: example.events == ["begun", "cancelled"])


async def test_cancelling_before_the_request_left_leaves_nothing(caller: Bus, example: Example) -> None:
    task = asyncio.create_task(caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(10)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await caller.call(SUBJECT, "echo", Ask(1), reply=Text, context=Context.new(10))
    assert example.events in ([], ["begun", "cancelled"])


async def test_the_deadline_ends_both_sides(caller: Bus, example: Example) -> None:
    with pytest.raises(CallError) as caught:
        await caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(0.2), stage="asked")
    assert caught.value.code == "deadline_exceeded"
    assert not caught.value.retryable
    await until(lambda: example.events == ["begun", "cancelled"])


async def test_a_deadline_in_the_past_sends_nothing(caller: Bus, example: Example) -> None:
    with pytest.raises(CallError) as caught:
        await caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(-1))
    assert caught.value.code == "deadline_exceeded"
    await caller.call(SUBJECT, "echo", Ask(1), reply=Text, context=Context.new(10))
    assert example.events == []


async def test_a_deadline_ends_a_stream_that_its_reader_has_not_emptied(caller: Bus, example: Example) -> None:
    stream = caller.stream(SUBJECT, "count", Ask(10**9), reply=Item, context=Context.new(0.3))
    assert await anext(stream) == Number(0)
    await until(lambda: "cleaned" in example.events)
    with pytest.raises(CallError) as caught:
        await anext(stream)
    assert caught.value.code == "deadline_exceeded"
    assert [item async for item in stream] == []


async def test_closing_the_bus_ends_its_calls_and_their_handlers(callee: Bus, caller: Bus, example: Example) -> None:
    task = asyncio.create_task(caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(10)))
    await until(lambda: example.events == ["begun"])
    await caller.close()
    with pytest.raises(CallError) as caught:
        await task
    assert caught.value.code == "cancelled"
    await until(lambda: example.events == ["begun", "cancelled"])


async def test_a_handler_that_cancels_itself_is_an_error_not_a_silence(caller: Bus, callee: Bus) -> None:
    class Odd(Example):
        async def echo(self, request: Ask, context: Context) -> Text:
            raise asyncio.CancelledError

    await callee.serve(SUBJECT, stage=STAGE, operations=Odd().operations)
    with pytest.raises(CallError) as caught:
        await caller.call(SUBJECT, "echo", Ask(1), reply=Text, context=Context.new(10))
    assert (caught.value.code, caught.value.stage) == ("cancelled", STAGE)


async def test_cleaning_up_is_not_cut_short(caller: Bus, callee: Bus) -> None:
    """The deadline cancels the handler; that its caller hangs up soon after does not cancel its cleaning up."""
    events, hold = [], asyncio.Event()

    async def slow_to_leave(request: Ask, context: Context) -> Text:
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")
            await hold.wait()
            events.append("cleaned")
        return Text("")

    await callee.serve(SUBJECT, stage=STAGE, operations={"leave": operation(Ask, slow_to_leave)})
    with pytest.raises(CallError) as late:
        await caller.call(SUBJECT, "leave", Ask(1), reply=Text, context=Context.new(0.3))
    assert late.value.code == "deadline_exceeded"
    await until(lambda: caller.open_calls == 0 and events == ["cancelled"])
    await until(lambda: callee.peers == 0)  # the caller's word that it has done with it has come
    hold.set()
    await until(lambda: events == ["cancelled", "cleaned"])
