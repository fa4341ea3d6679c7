"""One message, or very many, from somebody who wants the service to end: it beats on, and answers the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from components import background
from components.messaging import Bus, CallError, Context, Service
from components.messaging import answer as answers
from components.messaging import service as services
from components.messaging.addresses import call_number, split_reply
from components.messaging.errors import decode_error
from components.messaging.frames import ERROR, Kind, pack_taken, unpack
from components.messaging.wire import Wire
from components.runtime.servers import NatsServer
from tests.messaging.example import STAGE, SUBJECT, Ask, Example, Text
from tests.messaging.stranger import Stranger, stranger
from tests.servers import until

GOOD = b"NATS/1.0\r\noperation: echo\r\nversion: 1\r\n\r\n"


@pytest.fixture
async def hostile(shared_nats: NatsServer) -> AsyncIterator[Stranger]:
    async with stranger(shared_nats) as one:
        yield one


@pytest.fixture
def failures() -> Iterator[list[str]]:
    """Background work that ended; in a role it would have ended the process."""
    reasons: list[str] = []
    with background.ends_process(reasons.append):
        yield reasons


class Watched:
    """A service with one call open, whose heartbeats are counted."""

    def __init__(self, bus: Bus, service: Service) -> None:
        self._bus = bus
        self.service = service
        self.beats = 0

    async def is_well(self) -> None:
        """Its heart beats, it hears, and it answers others."""
        before = self.beats
        async with asyncio.timeout(5):
            answer = await self._bus.call(SUBJECT, "echo", Ask(1, text="a"), reply=Text, context=Context.new(5))
        assert answer == Text("a")
        await until(lambda: self.beats >= before + 2, 5)


@pytest.fixture
async def watched(shared_nats: NatsServer, caller: Bus, callee: Bus, failures: list[str]) -> AsyncIterator[Watched]:
    example = Example()
    watched = Watched(caller, await callee.serve(SUBJECT, stage=STAGE, operations=example.operations))
    held = asyncio.create_task(caller.call(SUBJECT, "hang", Ask(1), reply=Text, context=Context.new(60)))
    listener = await Wire.connect([shared_nats.url], name="listener", wait=5)

    async def hear(msg: Msg) -> None:
        watched.beats += msg.data[:1] == bytes((Kind.SENT,))

    await listener.subscribe(f"{caller._wire.inbox}.f", hear)
    await until(lambda: watched.beats > 0)
    yield watched
    example.hold.set()
    assert await held == Text("")
    assert failures == []
    await listener.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"x.r" + b"9" * 26,
        b"_INBOX.x.r" + b"9" * 26,
        b"_INBOX.x.r" + b"9" * 3000,
        b"_INBOX.x.r4294967296",
        b"_INBOX.x.r-1",
        b"_INBOX.x.r1_0",
        "_INBOX.x.r٣".encode(),
        b"_INBOX.x.r\xff",
        b"_INBOX.\xff.r1",
        b"_INBOX.*.r1",
        b"_INBOX.>.r1",
        b"_INBOX..r1",
        # What is sent there would be more than a line of the protocol may hold: the server would close on us.
        b"_INBOX." + b"x" * 4030 + b".r1",
        b"triptych.test.panel.one.r1",
    ],
)
async def test_a_reply_subject_of_any_kind_ends_nothing(watched: Watched, hostile: Stranger, reply: bytes) -> None:
    for head in (GOOD, None):
        await hostile.publish(SUBJECT.encode(), reply, head, b"\x07\x90")
    await hostile.arrived()
    await watched.is_well()
    assert len(watched.service._callers) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"NATS/1.0 \xff\xff\xff\r\n\r\n",
        b"NATS/1.0 503 \xff\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\n",
        b"NATS/1.0\r\n\r\n",
        b"\r\n",
        b"x",
        b"NATS/1.0\r\noperation\r\n: :\r\n\xff: \xff\r\n\r\n",
    ],
)
async def test_a_header_of_any_kind_ends_nothing(
    watched: Watched, hostile: Stranger, caller: Bus, callee: Bus, head: bytes
) -> None:
    for subject in (SUBJECT, f"{caller._wire.inbox}.r7", f"{callee._wire.inbox}.l0", f"{callee._wire.inbox}.f"):
        await hostile.publish(subject.encode(), b"_INBOX.x.r1", head, b"x")
    await hostile.arrived()
    await watched.is_well()


@pytest.mark.parametrize("name", ["deadline", "version", "id", "traceparent"])
@pytest.mark.parametrize(
    "value", ["nan", "inf", "1e308", "9" * 400, "-1", " 1", "1_0", "٣", "0x1", "", "1." + "0" * 99]
)
def test_a_header_value_is_what_it_should_be_or_an_error(name: str, value: str) -> None:
    headers = {**Context.new(5).headers(), "version": "1", name: value}
    try:
        context = Context.from_headers(headers)
    except ValueError:
        return
    assert context.remaining() < 8 * 24 * 3600


raw = st.binary(max_size=24)
token = st.one_of(raw, st.integers().map(lambda number: b"r%d" % number), st.integers().map(lambda n: b"l%d" % n))
reply = st.builds(lambda inbox, last: inbox + b"." + last, st.sampled_from([b"_INBOX.x", b"x", b"", b"_INBOX"]), token)
line = st.builds(
    lambda key, value: key + b": " + value + b"\r\n",
    st.sampled_from([b"operation", b"version", b"deadline", b"id", b"traceparent"]) | raw,
    st.sampled_from([b"echo", b"count", b"status", b"1", b"nan", b"9" * 30]) | raw,
)
head = st.none() | raw | st.lists(line, max_size=6).map(lambda lines: b"NATS/1.0\r\n" + b"".join(lines) + b"\r\n")


async def test_raw_messages_of_every_kind_end_nothing(
    watched: Watched, hostile: Stranger, caller: Bus, callee: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_UNFETCHED_SECONDS", 0.1)
    own = [f"{bus._wire.inbox}.{part}".encode() for bus in (caller, callee) for part in ("f", "echo", "l0", "r99", "é")]
    messages: list[tuple[bytes, bytes, bytes | None, bytes]] = []

    @settings(max_examples=400, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([SUBJECT.encode(), *own]), reply, head, raw | st.binary(max_size=2).map(lambda b: b * 300))
    def collect(subject: bytes, reply: bytes, head: bytes | None, body: bytes) -> None:
        # Frames to the caller that name its open call (number 0) would only end that: calls are numbered anew.
        if subject != own[0] or body[1:5] != bytes(4):
            messages.append((subject, reply, head, body))

    collect()
    for message in messages:
        await hostile.publish(*message)
    await hostile.arrived()
    await watched.is_well()
    await until(lambda: len(watched.service._callers) == 1)


@pytest.mark.parametrize("inboxes", ["many inboxes", "many numbers"])
async def test_very_many_calls_that_nobody_fetches_are_bounded_and_expire(
    watched: Watched, hostile: Stranger, callee: Bus, monkeypatch: pytest.MonkeyPatch, inboxes: str
) -> None:
    monkeypatch.setattr(answers, "_UNFETCHED_SECONDS", 0.5)
    callers = watched.service._callers
    most = [0, 0]
    for index in range(100_000):
        reply = b"_INBOX.x%d.r0" % index if inboxes == "many inboxes" else b"_INBOX.x.r%d" % index
        await hostile.publish(SUBJECT.encode(), reply, GOOD, b"\x80")
        if index % 500 == 0:
            await hostile.arrived()
            await asyncio.sleep(0)
            most = [max(most[0], len(callers)), max(most[1], callers.answers)]
    await hostile.arrived()
    assert most[0] <= services.CALLERS_LIMIT
    assert most[1] <= services.ANSWERS_LIMIT
    await until(lambda: len(callers) == 1 and callers.answers == 1)
    assert callee.peers == 1
    await watched.is_well()


async def test_a_full_service_says_so_and_keeps_nothing(
    watched: Watched, shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "CALLERS_LIMIT", 1)
    other = await Bus.connect([shared_nats.url], name="other")
    with pytest.raises(CallError) as caught:
        await other.call(SUBJECT, "echo", Ask(1), reply=Text, context=Context.new(5))
    assert (caught.value.code, caught.value.stage, caught.value.retryable) == ("overloaded", STAGE, True)
    await other.close()
    assert watched.service._callers.answers == 1
    await watched.is_well()


async def test_a_caller_cannot_open_its_window_for_ever(
    watched: Watched, hostile: Stranger, shared_nats: NatsServer
) -> None:
    client = Client()
    await client.connect(shared_nats.url)
    kinds: list[int] = []

    async def hear(msg: Msg) -> None:
        kinds.append(msg.data[0])

    await client.subscribe("_INBOX.greedy.>", cb=hear)
    headers = {"operation": "count", "version": "1", **Context.new(60).headers()}
    await client.publish(SUBJECT, b"\x81\xa5count\xce\x7f\xff\xff\xff", "_INBOX.greedy.r0", headers)
    await until(lambda: len(kinds) == 64)
    await client.publish(SUBJECT, pack_taken([(0, 0, 2**32 - 1)]), "_INBOX.greedy.l0")
    await client.publish(SUBJECT, pack_taken([(0, 2**31, 2**32 - 1)]), "_INBOX.greedy.l0")
    await client.flush()
    await watched.is_well()
    assert kinds.count(int(Kind.ITEM)) == 64
    await client.close()


def test_numbers_of_calls_are_read_strictly() -> None:
    assert call_number("r4294967295") == 2**32 - 1
    for odd in ("", "r", "1", "r01", "r4294967296", "r1 ", "r\n1", "r1\n", "R1"):
        with pytest.raises(ValueError, match="token"):
            call_number(odd)
    assert split_reply("_INBOX.a-b.l0") == ("_INBOX.a-b", "l0")
    with pytest.raises(ValueError, match="reply"):
        split_reply("_INBOX.a.r1\n")


def test_what_an_error_says_is_bounded() -> None:
    error = {"code": "x" * 10_000, "message": "m", "stage": "s", "retryable": False, "param": None}
    with pytest.raises(ValueError, match="length"):
        decode_error(msgspec.msgpack.encode(error))
    assert unpack(bytes((ERROR, *bytes(8))))[0] == ERROR
