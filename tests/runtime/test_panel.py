"""Panels find, call and replace each other, over real NATS and etcd."""

from __future__ import annotations

import asyncio
import gc
import os
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from components.config import Etcd, Nats, Topology
from components.messaging import CallError, Context, Operation, operation
from components.protocol import Role, TextDelta, UrlImage
from components.runtime import Panel, Peers
from components.runtime.servers import EtcdServer, NatsServer
from tests.servers import until

ASK = UrlImage(url="http://example/")
"""Any message will do."""


def topology(nats: NatsServer, etcd: EtcdServer) -> Topology:
    return Topology(
        namespace=f"test-{uuid.uuid4().hex[:8]}",
        nats=Nats(servers=(nats.url,)),
        etcd=Etcd(endpoints=(etcd.endpoint,)),
        drain_seconds=10.0,
    )


class Worker:
    """Answers ``ask`` and ``stream`` with its own name, or fails as it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: CallError | None = None
        self.asked = 0
        self.hold = asyncio.Event()
        self.hold.set()

    @property
    def operations(self) -> Mapping[str, Operation[Any]]:
        return {"ask": operation(UrlImage, self.ask), "stream": operation(UrlImage, self.stream)}

    async def ask(self, request: UrlImage, context: Context) -> TextDelta:
        self.asked += 1
        await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        return TextDelta(text=self.name, tokens=1)

    async def stream(self, request: UrlImage, context: Context) -> AsyncGenerator[TextDelta, None]:
        yield await self.ask(request, context)
        await asyncio.sleep(0.01)
        raise CallError("transfer_failed", "in the middle", retryable=True)


class Stage:
    """Workers of one role and a panel of another that calls them."""

    def __init__(self, stack: AsyncExitStack, topology: Topology) -> None:
        self._stack = stack
        self._topology = topology
        self.namespace = topology.namespace
        self.workers: dict[str, Worker] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def caller(self, role: Role = "encode") -> Peers:
        return await (await self.panel()).peers(role)

    async def panel(self, name: str | None = None) -> Panel:
        return await self._stack.enter_async_context(Panel.open("decode", self._topology, name))

    async def start(self, name: str, limit: int | None = None) -> Worker:
        worker = self.workers[name] = Worker(name)
        ready = asyncio.Event()

        async def run() -> None:
            async with Panel.open("encode", self._topology, name) as panel:
                await panel.serve(worker.operations, capacity=2, limit=limit, revision="r", engine="e")
                ready.set()
                await panel.until_stopped()

        self.tasks[name] = asyncio.create_task(run())
        self._stack.push_async_callback(self.stop, name)
        await ready.wait()
        return worker

    async def stop(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name]])


@pytest.fixture
async def stage(shared_nats: NatsServer, shared_etcd: EtcdServer) -> AsyncGenerator[Stage, None]:
    async with AsyncExitStack() as stack:
        yield Stage(stack, topology(shared_nats, shared_etcd))


async def ask(peers: Peers) -> str:
    return (await peers.call("ask", ASK, reply=TextDelta, context=Context.new(10))).text


async def test_an_instance_is_found_with_all_it_says_of_itself(stage: Stage) -> None:
    peers = await stage.caller()
    assert not peers.ready
    await stage.start("a")
    await asyncio.wait_for(peers.until_ready(), 5)
    (instance,) = peers.instances
    assert (instance.role, instance.id, instance.subject) == ("encode", "a", f"triptych.{stage.namespace}.encode.a")
    assert (instance.model, instance.revision, instance.engine, instance.capacity) == ("tiny-vl", "r", "e", 2)
    assert instance.pid == os.getpid()
    assert await ask(peers) == "a"


async def test_nobody_there_names_the_role(stage: Stage) -> None:
    peers = await stage.caller("prefill")
    with pytest.raises(CallError, match="no prefill instance") as caught:
        await ask(peers)
    assert (caught.value.code, caught.value.stage, caught.value.retryable) == ("unavailable", "prefill", True)


async def test_the_one_with_the_fewest_requests_is_next_and_equals_take_turns(stage: Stage) -> None:
    peers = await stage.caller()
    for name in "abc":
        await stage.start(name)
    await until(lambda: len(peers.instances) == 3)
    assert sorted([await ask(peers) for _ in range(6)]) == ["a", "a", "b", "b", "c", "c"]
    async with peers.pick() as first, peers.pick() as second:
        assert first.id != second.id
        third = ({"a", "b", "c"} - {first.id, second.id}).pop()
        assert await ask(peers) == third
        async with peers.pick(exclude={third}) as again:
            assert again.id != third
    with pytest.raises(CallError, match="no encode instance"):
        async with peers.pick(exclude={"a", "b", "c"}):
            pass


@pytest.mark.parametrize("code", ["transfer_failed", "overloaded", "unavailable", "peer_lost"])
async def test_what_another_instance_may_manage_is_tried_there(stage: Stage, code: str) -> None:
    peers = await stage.caller()
    bad, good = await stage.start("bad"), await stage.start("good")
    await until(lambda: len(peers.instances) == 2)
    bad.failure = CallError(code, "not me", retryable=True)
    assert [await ask(peers) for _ in range(4)] == ["good"] * 4
    good.failure = CallError(code, "nor me", retryable=True)
    with pytest.raises(CallError, match="me") as caught:
        await ask(peers)
    assert caught.value.code == code


async def test_what_no_instance_can_manage_is_tried_once(stage: Stage) -> None:
    peers = await stage.caller()
    workers = [await stage.start("a"), await stage.start("b")]
    await until(lambda: len(peers.instances) == 2)
    for failure in (
        CallError("image_undecodable", "no picture"),
        # It was tried on every encoder that the stage in between knows.
        CallError("unavailable", "no prefill instance is there", stage="prefill", retryable=True),
    ):
        before = sum(worker.asked for worker in workers)
        for worker in workers:
            worker.failure = failure
        with pytest.raises(CallError, match=failure.message):
            await ask(peers)
        assert sum(worker.asked for worker in workers) == before + 1
    assert all(peers._suspected(name) is False for name in "ab")


async def test_a_stream_that_has_begun_is_not_begun_again(stage: Stage) -> None:
    peers = await stage.caller()
    await stage.start("a")
    await stage.start("b")
    await until(lambda: len(peers.instances) == 2)
    items: list[str] = []
    with pytest.raises(CallError, match="in the middle"):
        async for item in peers.stream("stream", ASK, reply=TextDelta, context=Context.new(10)):
            items.append(item.text)
    assert len(items) == 1


async def test_a_full_instance_passes_on(stage: Stage) -> None:
    peers = await stage.caller()
    full, free = await stage.start("full", limit=1), await stage.start("free", limit=100)
    await until(lambda: len(peers.instances) == 2)
    full.hold.clear()
    free.hold.clear()
    asked = [asyncio.create_task(ask(peers)) for _ in range(6)]
    await until(lambda: (full.asked, free.asked) == (1, 5))
    full.hold.set()
    free.hold.set()
    assert sorted(await asyncio.gather(*asked)) == ["free"] * 5 + ["full"]


async def test_one_that_joins_is_used_and_one_that_leaves_finishes_its_work(stage: Stage) -> None:
    peers = await stage.caller()
    leaving = await stage.start("leaving")
    await asyncio.wait_for(peers.until_ready(), 5)
    leaving.hold.clear()
    running = asyncio.create_task(ask(peers))
    await until(lambda: leaving.asked == 1)

    await stage.start("joining")
    await until(lambda: len(peers.instances) == 2)
    stage.tasks["leaving"].cancel()
    await until(lambda: [each.id for each in peers.instances] == ["joining"])
    assert [await ask(peers) for _ in range(3)] == ["joining"] * 3
    assert not running.done()
    assert not stage.tasks["leaving"].done()
    leaving.hold.set()
    assert await running == "leaving"
    await asyncio.wait([stage.tasks["leaving"]], timeout=5)
    assert stage.tasks["leaving"].cancelled()


async def test_a_suspect_is_avoided_but_better_than_nobody(stage: Stage) -> None:
    peers = await stage.caller()
    await stage.start("a")
    await asyncio.wait_for(peers.until_ready(), 5)
    peers.drop("a")
    assert not peers.ready
    assert await ask(peers) == "a"
    await stage.start("b")
    await until(lambda: len(peers.instances) == 2)
    assert [await ask(peers) for _ in range(4)] == ["b"] * 4
    assert peers.ready


async def test_restarts_of_nats_and_etcd_lose_no_request(nats: NatsServer, etcd: EtcdServer) -> None:
    async with AsyncExitStack() as stack:
        stage = Stage(stack, topology(nats, etcd))
        peers = await stage.caller()
        worker = await stage.start("a")
        await asyncio.wait_for(peers.until_ready(), 5)
        worker.hold.clear()
        running = asyncio.create_task(ask(peers))
        await until(lambda: worker.asked == 1)
        await asyncio.gather(nats.restart(), etcd.restart())
        later = asyncio.create_task(ask(peers))
        worker.hold.set()
        assert await running == "a"
        assert await later == "a"
        assert worker.asked == 2


async def test_ready_is_said_on_the_pipe_once_others_can_find_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setenv("TRIPTYCH_READY_FD", str(writing))
    await stage.start("a")
    assert os.read(reading, 100) == b"ready\n"
    os.close(reading)


async def test_what_was_loaded_before_it_serves_is_not_looked_through_again(stage: Stage) -> None:
    """By the collector of garbage, which stops every thread while it looks."""
    gc.unfreeze()
    loaded = [[] for _ in range(100_000)]  # type: ignore[var-annotated]
    await stage.start("one")
    assert len(gc.get_objects()) < len(loaded) < gc.get_freeze_count()
