"""What a call brings back, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from components.messaging import Bus, CallError, Context
from components.runtime.servers import NATS_MAX_PAYLOAD, NatsServer
from tests.messaging.example import STAGE, SUBJECT, Ask, Example, Item, Number, Text
from tests.servers import until


async def test_a_call_brings_back_its_answer_and_carries_its_context(caller: Bus, callee: Bus) -> None:
    example = Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    context = Context.new(10, id="request-1")
    answer = await caller.call(SUBJECT, "echo", Ask(1, text="grüezi"), reply=Text, context=context)
    assert answer == Text("grüezi")
    assert example.contexts == [context]


async def test_a_stream_is_complete_and_in_order(caller: Bus, callee: Bus) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    stream = caller.stream(SUBJECT, "count", Ask(1000), reply=Item, context=Context.new(10))
    assert [item async for item in stream] == [Number(value) for value in range(1000)]
    empty = caller.stream(SUBJECT, "count", Ask(0), reply=Item, context=Context.new(10))
    assert [item async for item in empty] == []


async def test_a_hundred_streams_at_once_do_not_mix(caller: Bus, callee: Bus) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)

    async def read(count: int) -> list[Item]:
        stream = caller.stream(SUBJECT, "count", Ask(count), reply=Item, context=Context.new(10))
        return [item async for item in stream]

    answers = await asyncio.gather(*(read(count) for count in range(100)))
    assert [len(answer) for answer in answers] == list(range(100))


async def test_both_sides_may_call_each_other_on_one_bus(callee: Bus) -> None:
    example = Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    assert await callee.call(SUBJECT, "echo", Ask(1, text="me"), reply=Text, context=Context.new(10)) == Text("me")


async def failure(bus: Bus, operation: str, request: object, subject: str = SUBJECT, reply: type = Text) -> CallError:
    with pytest.raises(CallError) as caught:
        await bus.call(subject, operation, request, reply=reply, context=Context.new(10), stage="asked")
    return caught.value


async def test_nobody_there_is_known_at_once(caller: Bus) -> None:
    began = time.monotonic()
    error = await failure(caller, "echo", Ask(1))
    assert (error.code, error.stage, error.retryable) == ("unavailable", "asked", True)
    assert SUBJECT in error.message
    assert time.monotonic() - began < 1


async def test_errors_of_a_handler_cross_the_wire(caller: Bus, callee: Bus, caplog: pytest.LogCaptureFixture) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    error = await failure(caller, "refuse", Ask(1, text="truncated"))
    assert (error.code, error.message, error.stage, error.param) == ("image_undecodable", "truncated", STAGE, "image")
    assert not error.retryable

    with caplog.at_level(logging.ERROR):
        error = await failure(caller, "fail", Ask(1, text="x" * 100_000))
    assert (error.code, error.stage, error.retryable) == ("internal", STAGE, False)
    assert len(error.message) <= 2000
    assert "Traceback" in caplog.text


async def test_a_request_that_is_not_one_is_refused_and_the_service_survives(caller: Bus, callee: Bus) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    error = await failure(caller, "echo", {"count": "many"})
    assert (error.code, error.stage) == ("invalid_request", STAGE)
    assert "count" in error.message
    error = await failure(caller, "dance", Ask(1))
    assert error.code == "invalid_request"
    assert "dance" in error.message
    assert await caller.call(SUBJECT, "echo", Ask(1, text="a"), reply=Text, context=Context.new(10)) == Text("a")


async def test_an_answer_of_another_type_is_an_error_and_ends_the_handler(caller: Bus, callee: Bus) -> None:
    example = Example()
    await callee.serve(SUBJECT, stage=STAGE, operations=example.operations)
    error = await failure(caller, "count", Ask(10, seconds=0.01), reply=Text)
    assert error.code == "internal"
    assert "Text" in error.message


async def test_another_protocol_version_is_refused(shared_nats: NatsServer, callee: Bus) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    newer = await Bus.connect([shared_nats.url], name="newer", version=2)
    error = await failure(newer, "echo", Ask(1))
    await newer.close()
    assert (error.code, error.stage, error.retryable) == ("unavailable", STAGE, True)
    assert "version 1" in error.message
    assert "2" in error.message


async def test_what_nats_cannot_carry_is_refused_before_it_is_sent(caller: Bus, callee: Bus) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    too_much = "x" * NATS_MAX_PAYLOAD
    error = await failure(caller, "echo", Ask(1, text=too_much))
    assert error.code == "body_too_large"
    almost = Ask(1, text="x" * (NATS_MAX_PAYLOAD - 2000))
    assert (await caller.call(SUBJECT, "echo", almost, reply=Text, context=Context.new(10))).value == almost.text

    class Large(Example):
        async def echo(self, request: Ask, context: Context) -> Text:
            return Text(too_much)

    await callee.serve("triptych.test.large", stage=STAGE, operations=Large().operations)
    error = await failure(caller, "echo", Ask(1), subject="triptych.test.large")
    assert (error.code, error.stage) == ("internal", STAGE)
    assert "NATS" in error.message


@pytest.mark.parametrize("subject", ["", "a b", "a..b", "a.*", "a.>", "a\r\nPUB b 0"])
async def test_a_subject_that_is_not_one_is_a_mistake_of_the_program(caller: Bus, subject: str) -> None:
    with pytest.raises(ValueError, match="subject"):
        caller.stream(subject, "echo", Ask(1), reply=Text, context=Context.new(10))


async def test_capacity_refuses_new_work_but_not_what_serves_work_that_is_here(caller: Bus, callee: Bus) -> None:
    example = Example()
    service = await callee.serve(SUBJECT, stage=STAGE, operations=example.operations, capacity=2)
    held = [
        asyncio.create_task(caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(10))) for _ in "ab"
    ]
    await until(lambda: example.events == ["begun", "begun"])
    error = await failure(caller, "echo", Ask(1))
    assert (error.code, error.stage, error.retryable) == ("overloaded", STAGE, True)
    inside = await caller.call(SUBJECT, "inside", Ask(1, text="in"), reply=Text, context=Context.new(10))
    assert inside == Text("in")
    example.hold.set()
    await asyncio.gather(*held)
    assert await caller.call(SUBJECT, "echo", Ask(1, text="a"), reply=Text, context=Context.new(10)) == Text("a")
    assert service.running == 0


async def test_no_server_is_said_in_one_line() -> None:
    with pytest.raises(ConnectionError, match=r"nats://127\.0\.0\.1:1 "):
        await Bus.connect(["nats://127.0.0.1:1"], name="x", wait=0.3)
