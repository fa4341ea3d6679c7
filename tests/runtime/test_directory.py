"""Strangers' entries in etcd beside one living instance: no request fails for them, and somebody is told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager

import msgspec
import pytest

from components.discovery.etcd import Etcd
from components.messaging import CallError
from components.protocol import VERSION, Instance
from components.runtime import Panel, Peers
from components.runtime.directory import directory
from components.runtime.servers import EtcdServer, NatsServer
from components.telemetry.metrics import REGISTRY
from tests.runtime.test_panel import Stage, ask, topology
from tests.servers import until

ME = Instance(role="encode", id="me", subject="triptych.test.encode.me", model="tiny-vl", revision="r", host="h", pid=1)
OURS: dict[str, object] = msgspec.to_builtins(ME)

HOSTILE = {
    "nothing": b"",
    "no text": b"\xff\xfe",
    "no JSON": b"{",
    "no object": b"[1]",
    "deep": b'{"role": ' + b"[" * 8000,
    "surrogate": json.dumps({**OURS, "host": "\ud800"}).encode(),
    "unknown field": json.dumps({**OURS, "more": 1}).encode(),
    "no subject": json.dumps({name: value for name, value in OURS.items() if name != "subject"}).encode(),
    "a host of 10 MB": json.dumps({**OURS, "host": "h" * 10_000_000}).encode(),
}
WRONG: dict[str, list[object]] = {
    "subject": [
        "",
        "*",
        ">",
        "triptych.test.encode.*",
        "triptych.test.encode.other",
        "triptych.test.decode.me",
        "triptych.other.encode.me",
        "triptych.test.encode.me\r\nPUB x 1",
        "triptych.test.encode.me\n",
        "$SYS.REQ.SERVER.PING",
        7,
    ],
    "model": ["", "another", None],
    "role": ["decode", "admin", "", None],
    "id": ["other", "", "m e", "me\n", "me*", "../me", "x" * 300, None],
    "protocol": [0, VERSION + 1, -1, 2**31, 1e300, "1"],
    "capacity": [0, -1, 2**63, 1e300],
    "pid": [-1, 2**31, "1"],
    "host": ["h" * 257, None],
    "engine": ["e" * 257],
    "revision": ["another", "r" * 257],
}

take = directory("test", "encode", "tiny-vl", "r")


def test_an_instance_is_taken() -> None:
    assert take("me", msgspec.json.encode(ME)) == ME


def test_any_model_and_revision_is_taken_where_none_is_asked_for() -> None:
    other = msgspec.structs.replace(ME, model="another", revision="another")
    assert directory("test", "encode")("me", msgspec.json.encode(other)) == other


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_instance_is_refused(kind: str) -> None:
    with pytest.raises(ValueError):
        take("me", HOSTILE[kind])


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_is_wrong_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"its {name} is|\$\.{name}"):
        take("me", json.dumps({**OURS, name: value}).encode())


@pytest.mark.parametrize("id", ["a b", "*", ">", "a/b", "a..b", ".", "é", "a\0", "x" * 300])
def test_an_id_that_makes_no_subject_is_refused(id: str) -> None:
    value = json.dumps({**OURS, "id": id, "subject": f"triptych.test.encode.{id}"})
    with pytest.raises(ValueError, match=r"\$\.id"):
        take(id, value.encode())


class Strangers:
    """Write below a role's prefix."""

    def __init__(self, etcd: EtcdServer, namespace: str) -> None:
        self._etcd = Etcd([etcd.endpoint])
        self._namespace = namespace
        self._lease = self._etcd.grant(120)

    def write(self, id: str, value: bytes) -> None:
        self._etcd.put(f"/triptych/{self._namespace}/encode/{id}", value, self._lease)

    def register(self, key: str, **changes: object) -> None:
        """As if it were an instance of this deployment."""
        subject = f"triptych.{self._namespace}.encode.{key}"
        self.write(key, json.dumps({**OURS, "id": key, "subject": subject, **changes}).encode())

    def close(self) -> None:
        self._etcd.revoke(self._lease)
        self._etcd.close()


@pytest.fixture
async def stage(shared_nats: NatsServer, shared_etcd: EtcdServer) -> AsyncGenerator[Stage, None]:
    async with AsyncExitStack() as stack:
        yield Stage(stack, topology(shared_nats, shared_etcd))


@pytest.fixture
def strangers(stage: Stage, shared_etcd: EtcdServer) -> Iterator[Strangers]:
    strangers = Strangers(shared_etcd, stage.namespace)
    yield strangers
    strangers.close()


@contextmanager
def quiet_but_for(caplog: pytest.LogCaptureFixture, words: str, count: int) -> Iterator[None]:
    """Exactly ``count`` warnings with ``words``, and no error."""
    with caplog.at_level(logging.WARNING):
        yield
    assert sum(words in record.getMessage() for record in caplog.records) == count
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def refused_now() -> float | None:
    return REGISTRY.get_sample_value("triptych_discovery_refused_entries", {"role": "encode"})


async def test_requests_succeed_beside_all_kinds_of_strangers(
    stage: Stage, strangers: Strangers, caplog: pytest.LogCaptureFixture
) -> None:
    written = {kind.replace(" ", "-"): value for kind, value in HOSTILE.items() if len(value) < 1_500_000}
    for name, values in WRONG.items():
        if name != "revision":
            written |= {f"{name}-{index}": value for index, value in enumerate(values)}  # type: ignore[misc]
    with quiet_but_for(caplog, "is skipped", len(written)):
        for id, value in written.items():
            if isinstance(value, bytes):
                strangers.write(id, value)
            else:
                strangers.register(id, **{id.rpartition("-")[0]: value})
        await stage.start("living")
        peers = await stage.caller()
        await until(lambda: bool(peers.instances))
        assert [each.id for each in peers.instances] == ["living"]
        assert [await ask(peers) for _ in range(20)] == ["living"] * 20
        assert refused_now() == len(written)
        # They change what they wrote: nobody is told again.
        for id in written:
            strangers.write(id, b"no longer the same")
        strangers.register("last", model="another")
        await until(lambda: refused_now() == len(written) + 1)
        caplog.records[:] = [record for record in caplog.records if "/last" not in record.getMessage()]
        assert await ask(peers) == "living"


async def test_entries_of_the_dead_cost_no_tries(
    stage: Stage, strangers: Strangers, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(300):
        strangers.register(f"dead-{index}")
    await stage.start("living")
    peers = await stage.caller()
    await until(lambda: len(peers.instances) == 301)
    began = time.monotonic()
    assert await asyncio.gather(*(ask(peers) for _ in range(8))) == ["living"] * 8
    took = time.monotonic() - began
    print(f"8 requests past 300 dead entries: {took:.3f} s")
    assert took < 5
    assert [await ask(peers) for _ in range(20)] == ["living"] * 20


async def test_only_the_dead(stage: Stage, strangers: Strangers) -> None:
    for index in range(5):
        strangers.register(f"dead-{index}")
    peers = await stage.caller()
    await until(lambda: len(peers.instances) == 5)
    with pytest.raises(CallError, match="nobody answers") as caught:
        await ask(peers)
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
    assert not peers.ready


async def test_what_a_living_one_says_is_told_and_not_that_others_are_dead(stage: Stage, strangers: Strangers) -> None:
    for index in range(5):
        strangers.register(f"dead-{index}")
    living = await stage.start("living")
    living.failure = CallError("overloaded", "full", retryable=True)
    peers = await stage.caller()
    await until(lambda: len(peers.instances) == 6)
    for _ in range(6):
        with pytest.raises(CallError, match="full"):
            await ask(peers)


async def test_three_that_fail_are_enough_whatever_number_is_dead(stage: Stage, strangers: Strangers) -> None:
    for index in range(5):
        strangers.register(f"dead-{index}")
    workers = [await stage.start(name) for name in "abcde"]
    for worker in workers:
        worker.failure = CallError("transfer_failed", "not me", retryable=True)
    peers = await stage.caller()
    await until(lambda: len(peers.instances) == 10)
    with pytest.raises(CallError, match="not me"):
        await ask(peers)
    assert sum(worker.asked for worker in workers) == 3


async def test_another_revision_is_asked_by_nobody_who_needs_one(stage: Stage, strangers: Strangers) -> None:
    await stage.start("living")
    for index in range(5):
        strangers.register(f"other-{index}", revision="another")
    panel = await stage.panel()
    peers: Peers = await panel.peers("encode", "r")
    await until(lambda: bool(peers.instances))
    assert [each.id for each in peers.instances] == ["living"]


async def test_an_instance_that_others_would_skip_says_so(stage: Stage) -> None:
    panel: Panel = await stage.panel("not a token")
    with pytest.raises(ValueError, match=r"\$\.id"):
        await panel.serve({})


async def test_no_request_fails_while_etcd_stands_still_or_after_it(
    nats: NatsServer, etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """For longer than every lease lasts: it takes all of them away when it goes on."""
    async with AsyncExitStack() as stack:
        stage = Stage(stack, topology(nats, etcd))
        caller = await stage.panel()
        # As every panel does: its own lease cannot be kept either, which is how it knows.
        await caller.serve({})
        peers = await caller.peers("encode")
        for name in "ab":
            await stage.start(name)
        await until(lambda: len(peers.instances) == 2)
        assert etcd.pid is not None
        os.kill(etcd.pid, signal.SIGSTOP)
        try:
            goes_on = time.monotonic() + 8
            while time.monotonic() < goes_on:
                assert await ask(peers) in "ab"
        finally:
            os.kill(etcd.pid, signal.SIGCONT)
        while sum("ran out; registering again" in record.getMessage() for record in caplog.records) < 3:
            assert await ask(peers) in "ab"
            assert time.monotonic() < goes_on + 20
        for _ in range(200):
            assert await ask(peers) in "ab"
            assert len(peers.instances) == 2


def test_an_id_that_ends_in_a_line_break_is_none() -> None:
    """``$`` in a pattern lets one through; it then went into a subject, which NATS cannot have."""
    entry = {**OURS, "id": "d\n", "subject": "triptych.test.encode.d\n"}
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(entry).encode(), type=Instance)
