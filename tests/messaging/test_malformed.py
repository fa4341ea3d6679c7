"""Bytes that are not of the protocol harm nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from components.messaging import Bus, CallError, Context
from components.messaging.errors import decode_error, encode_error
from components.messaging.frames import Kind, unpack
from components.runtime.servers import NatsServer
from tests.messaging.example import STAGE, SUBJECT, Ask, Example, Item, Number, Text

frames = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda kind, rest: bytes((kind,)) + rest, st.sampled_from(Kind), st.binary(max_size=64)),
    st.builds(
        lambda kind, body: bytes((kind,)) + msgspec.msgpack.encode(body),
        st.sampled_from(Kind),
        st.recursive(st.integers(-(2**63), 2**64 - 1) | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3)),
    ),
)
headers = st.dictionaries(
    st.sampled_from(["id", "deadline", "traceparent", "operation", "version", "other"]),
    st.sampled_from(["", "1", "-1", "nan", "inf", "1e308", "echo", "00-1-2-3", "é", "x" * 300]),
    max_size=6,
)


@pytest.fixture
async def stranger(shared_nats: NatsServer) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(shared_nats.url)
    yield client
    await client.close()


async def test_a_service_survives_whatever_comes(
    caller: Bus, callee: Bus, stranger: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    messages: list[tuple[bytes, dict[str, str] | None, str]] = []

    @settings(max_examples=150, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(frames, st.none() | headers, st.sampled_from(["", "_INBOX.x", "_INBOX.x.r1", "_INBOX.x.r-1", "_INBOX.x.l0"]))
    def collect(data: bytes, header: dict[str, str] | None, reply: str) -> None:
        messages.append((data, header, reply))

    collect()
    stream = caller.stream(SUBJECT, "count", Ask(300, seconds=0.001), reply=Item, context=Context.new(20))
    first = await anext(stream)
    for data, header, reply in messages:
        await stranger.publish(SUBJECT, data, reply, header or None)
    await stranger.flush()
    assert [first, *[item async for item in stream]] == [Number(value) for value in range(300)]
    assert await caller.call(SUBJECT, "echo", Ask(1, text="a"), reply=Text, context=Context.new(5)) == Text("a")
    assert "Traceback" not in caplog.text


async def test_a_caller_survives_whatever_comes(
    caller: Bus, callee: Bus, stranger: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await callee.serve(SUBJECT, stage=STAGE, operations=Example().operations)
    messages: list[bytes] = []

    @settings(max_examples=150, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(frames)
    def collect(data: bytes) -> None:
        messages.append(data)

    collect()
    # Calls of this bus are numbered from 0: the frames of the strategy must not happen to end this one.
    for _ in range(3):
        await caller.call(SUBJECT, "echo", Ask(1), reply=Text, context=Context.new(5))
    stream = caller.stream(SUBJECT, "count", Ask(300, seconds=0.001), reply=Item, context=Context.new(20))
    first = await anext(stream)
    inbox = caller._wire.inbox
    for data in messages:
        if len(data) < 9 or unpack(data)[1] != 3:
            await stranger.publish(f"{inbox}.f", data)
            await stranger.publish(f"{inbox}.r{data.hex() or 0}", b"", headers={"Status": "503"})
    await stranger.flush()
    assert [first, *[item async for item in stream]] == [Number(value) for value in range(300)]
    assert "Traceback" not in caplog.text


@given(st.text(), st.text(), st.text(max_size=10), st.booleans(), st.none() | st.text(max_size=10))
def test_errors_come_out_as_they_went_in(
    code: str, message: str, stage: str, retryable: bool, param: str | None
) -> None:
    error = decode_error(encode_error(CallError(code, message, stage=stage, retryable=retryable, param=param), "here"))
    assert (error.code, error.message, error.retryable, error.param) == (code, message[:2000], retryable, param)
    assert error.stage == (stage or "here")


def test_a_context_comes_out_as_it_went_in() -> None:
    context = Context.new(5)
    assert Context.from_headers(context.headers()) == context
    child = context.child()
    assert child.traceparent != context.traceparent
    assert child.traceparent.split("-")[1] == context.traceparent.split("-")[1]
    assert (child.id, child.deadline) == (context.id, context.deadline)


def test_a_trace_of_the_client_is_continued_if_it_is_one() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert Context.new(5, traceparent=trace).traceparent == trace
    for odd in ("", "x", "00-1-2-3", trace + "-extra", trace.upper()):
        assert Context.from_headers(Context.new(5, traceparent=odd).headers()).traceparent != odd


@given(st.binary(max_size=40))
def test_context_headers_are_checked(data: bytes) -> None:
    text = data.decode("latin-1")
    for name in ("id", "deadline", "traceparent"):
        try:
            context = Context.from_headers({**Context.new(5).headers(), name: text})
        except ValueError:
            continue
        context.child()
        assert context.remaining() >= 0
