"""A decode engine gives up on a request while the panel waits for prefill, over real NATS and etcd."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest

from components.config import Etcd, Nats, Topology
from components.engines.base import EngineError, Reservation
from components.messaging import CallError, Context, operation
from components.protocol import (
    GenerateDone,
    GenerateItem,
    GenerateRequest,
    Prefilled,
    PrefillRequest,
    ReserveRequest,
    Sampling,
    Tokens,
)
from components.protocol import Reservation as Target
from components.runtime import Panel, Peers
from components.runtime.servers import EtcdServer, NatsServer
from tests.waiting import until
from workers.decode.service import DecodeService

REQUEST = GenerateRequest(model="m", token_ids=(1, 2, 3), images=(), sampling=Sampling(max_tokens=2))
DEADLINE = 60.0
"""Nothing here may last that long: what waits for it has hung."""


class Room:
    """A reservation that the engine gives up on when ``lost`` is set to an error."""

    target = b""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.lost: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()

    async def watch(self) -> None:
        raise await asyncio.shield(self.lost)

    def release(self) -> None:
        self._engine.rooms.discard(self)


class Engine:
    max_context = 100
    vocabulary = 100

    def __init__(self) -> None:
        self.rooms: set[Room] = set()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def check(self, prompt_tokens: int) -> None: ...

    def held(self) -> dict[str, int]:
        return {"rooms": len(self.rooms)}

    async def reserve(self, prompt_tokens: int, sampling: Sampling, source: bytes, seconds: float) -> Reservation:
        room = Room(self)
        self.rooms.add(room)
        return room

    async def generate(
        self, reservation: Reservation, first_token: int, next_position: int, sampling: Sampling, handover: bytes
    ) -> AsyncGenerator[list[int], None]:
        yield [first_token]
        yield [first_token + 1]


class Prefill:
    """Reserves memory with whoever asks, then takes its time."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self.waiting = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def prefill(self, request: PrefillRequest, context: Context) -> Prefilled:
        reserve = ReserveRequest(attempt=request.attempt, prompt_tokens=3)
        await self._panel.bus.call(request.reserve_subject, "reserve", reserve, reply=Target, context=context)
        self.waiting += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        return Prefilled(first_token=7, prompt_tokens=3, image_tokens=0, next_position=3)


class Stage:
    """Decode and prefill panels, and the peers that a processor would see."""

    def __init__(self, stack: AsyncExitStack, topology: Topology) -> None:
        self._stack = stack
        self._topology = topology
        self.engines: dict[str, Engine] = {}
        self.services: dict[str, DecodeService] = {}
        self.prefills: dict[str, Prefill] = {}

    async def decode(self, name: str) -> None:
        panel = await self._stack.enter_async_context(Panel.open("decode", self._topology, name))
        engine = self.engines[name] = Engine()
        peers = await panel.peers("prefill")
        service = self.services[name] = DecodeService("m", panel.subject, panel.bus, engine, peers, max_requests=9)
        await panel.serve(
            {
                "generate": operation(GenerateRequest, service.generate),
                "reserve": operation(ReserveRequest, service.reserve, inner=True),
            }
        )

    async def prefill(self, name: str) -> None:
        panel = await self._stack.enter_async_context(Panel.open("prefill", self._topology, name))
        prefill = self.prefills[name] = Prefill(panel)
        await panel.serve({"prefill": operation(PrefillRequest, prefill.prefill)})

    async def decoders(self) -> Peers:
        panel = await self._stack.enter_async_context(Panel.open("processor", self._topology))
        peers = await panel.peers("decode")
        await until(lambda: len(peers.instances) == len(self.engines), lambda: peers.instances)
        for service in self.services.values():
            seen = service._prefillers
            await until(lambda seen=seen: len(seen.instances) == len(self.prefills), lambda: self.prefills)  # type: ignore[misc]
        return peers

    def rooms(self) -> list[tuple[str, Room]]:
        return [(name, room) for name, engine in self.engines.items() for room in engine.rooms]

    async def waiting(self) -> tuple[str, Room]:
        """The one reservation that prefill has, and whose it is."""
        await until(lambda: sum(each.waiting for each in self.prefills.values()) == 1, lambda: self.prefills)
        ((name, room),) = self.rooms()
        return name, room

    async def idle(self) -> None:
        def held() -> int:
            attempts = sum(service.attempts + service._requests for service in self.services.values())
            return len(self.rooms()) + attempts + sum(each.waiting for each in self.prefills.values())

        await until(lambda: not held(), held)


@pytest.fixture
async def stage(shared_nats: NatsServer, shared_etcd: EtcdServer) -> AsyncGenerator[Stage, None]:
    topology = Topology(
        namespace=f"test-{uuid.uuid4().hex[:8]}",
        nats=Nats(servers=(shared_nats.url,)),
        etcd=Etcd(endpoints=(shared_etcd.endpoint,)),
        drain_seconds=5.0,
    )
    async with AsyncExitStack() as stack:
        yield Stage(stack, topology)


async def answer(decoders: Peers) -> list[int]:
    """What a processor would get; another decode worker is asked where that may help."""
    ids: list[int] = []
    stream = decoders.stream("generate", REQUEST, reply=GenerateItem, context=Context.new(DEADLINE))
    async for item in stream:
        if isinstance(item, Tokens):
            ids += item.ids
        elif isinstance(item, GenerateDone):
            assert item.usage.completion_tokens == len(ids)
    return ids


async def test_the_request_ends_with_the_engines_error_and_prefill_is_cancelled(stage: Stage) -> None:
    await stage.prefill("p")
    await stage.decode("d")
    asking = asyncio.create_task(answer(await stage.decoders()))
    _, room = await stage.waiting()
    room.lost.set_result(EngineError("internal", "out of order"))
    with pytest.raises(CallError, match="out of order") as ended:
        await asyncio.wait_for(asking, DEADLINE / 4)
    assert (ended.value.code, ended.value.stage, ended.value.retryable) == ("internal", "decode", False)
    await stage.idle()
    assert stage.prefills["p"].cancelled == 1


async def test_another_decode_worker_answers_for_one_whose_engine_died(stage: Stage) -> None:
    """And no prefill worker is suspected for it, or asked once more by the one that died."""
    await stage.prefill("p")
    await stage.prefill("q")
    await stage.decode("d")
    await stage.decode("e")
    asking = asyncio.create_task(answer(await stage.decoders()))
    dead, room = await stage.waiting()
    room.lost.set_result(EngineError("unavailable", "the engine died", retryable=True))
    prefills = stage.prefills.values()
    await until(lambda: sum(prefill.cancelled for prefill in prefills) == 1, lambda: prefills)
    for prefill in prefills:
        prefill.go.set()
    assert await asyncio.wait_for(asking, DEADLINE / 4) == [7, 8]
    await stage.idle()
    assert all(stage.services[dead]._prefillers._suspected(name) is False for name in stage.prefills)


async def test_a_transfer_that_failed_is_tried_with_another_prefill_worker(stage: Stage) -> None:
    await stage.prefill("p")
    await stage.prefill("q")
    await stage.decode("d")
    asking = asyncio.create_task(answer(await stage.decoders()))
    _, room = await stage.waiting()
    (first,) = (each for each in stage.prefills.values() if each.waiting)
    (second,) = (each for each in stage.prefills.values() if each is not first)
    second.go.set()
    room.lost.set_result(EngineError("transfer_failed", "the engine ended it", retryable=True))
    assert await asyncio.wait_for(asking, DEADLINE / 4) == [7, 8]
    assert (first.cancelled, second.cancelled) == (1, 0)
    await stage.idle()


async def test_a_reservation_that_is_not_lost_does_no_harm(stage: Stage) -> None:
    await stage.prefill("p")
    await stage.decode("d")
    asking = asyncio.create_task(answer(await stage.decoders()))
    await stage.waiting()
    stage.prefills["p"].go.set()
    assert await asyncio.wait_for(asking, DEADLINE / 4) == [7, 8]
    await stage.idle()
