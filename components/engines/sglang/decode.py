"""SGLang as decode engine: KV from SGLang's prefill engine in, tokens out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import torch

from components import background
from components.engines.base import EngineError, Reservation, check_token_ids
from components.engines.sglang.arguments import Arguments
from components.engines.sglang.budget import Budget
from components.engines.sglang.host import EngineHost
from components.engines.sglang.prefill import MARGIN
from components.engines.sglang.request import new_room, probe, read_source, request, rows, stub, write_room
from components.engines.sglang.stream import Stream
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.positions import expand
from components.protocol import Sampling, context_exceeded


class RoomReservation:
    """A request that waits in the engine for its KV; ``target`` is the room at which prefill joins it."""

    def __init__(self, room: int, stream: Stream, held: AsyncExitStack) -> None:
        self.target = write_room(room)
        self.stream = stream
        self._held = held
        self._released: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        await self.stream.ended()

    def release(self) -> None:
        if self._released is None:
            self._released = background.task(self._held.aclose(), "release of a room")


class SGLangDecodeEngine:
    def __init__(self, checkpoint: Checkpoint, arguments: Arguments, *, kv_tokens: int, max_batch: int) -> None:
        self.max_context = min(checkpoint.max_context, kv_tokens) - MARGIN
        self._image_token_id = int(checkpoint.config.image_token_id)
        self.vocabulary = checkpoint.vocabulary
        self._merge = checkpoint.merge
        self._budget = Budget(kv_tokens, max_batch)
        self._host = EngineHost(arguments)

    async def start(self) -> None:
        await self._host.start(probe(self._image_token_id, self._merge, 1, torch.float32))

    def held(self) -> dict[str, int]:
        return {"KV tokens": self._budget.used, "engine requests": self._host.requests}

    async def close(self) -> None:
        await self._host.close()

    def check(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self.max_context:
            raise EngineError("context_length_exceeded", context_exceeded(self.max_context, prompt_tokens))

    async def reserve(self, prompt_tokens: int, sampling: Sampling, source: bytes, seconds: float) -> Reservation:
        origin = read_source(source)
        check_token_ids(origin.token_ids, self.vocabulary)  # SGLang's scheduler would die of another.
        counts = [rows(grid, self._merge) for grid in origin.grids]
        token_ids = expand(origin.token_ids, self._image_token_id, counts)
        if len(token_ids) != prompt_tokens:
            raise EngineError("transfer_failed", f"KV source has {len(token_ids)} tokens, not {prompt_tokens}")
        images = stub(origin.grids, origin.content) if origin.grids else None
        room = new_room()
        tokens = prompt_tokens + sampling.max_tokens
        async with AsyncExitStack() as stack:
            await self._budget.acquire(tokens)
            stack.callback(self._budget.release, tokens)
            # From now on the engine asks the prefill engine for the KV; the answer begins when it is here.
            stream = await stack.enter_async_context(
                self._host.open(request(token_ids, sampling, images, origin.cache_salt, origin.host, origin.port, room))
            )
            return RoomReservation(room, stream, stack.pop_all())

    async def generate(
        self, reservation: Reservation, first_token: int, next_position: int, sampling: Sampling, handover: bytes
    ) -> AsyncGenerator[list[int], None]:
        # ``first_token`` comes once more, from this engine; what prefill says of a request that it aborted is not to be
        # trusted. The position SGLang knows from the grids.
        assert isinstance(reservation, RoomReservation)
        async for output in reservation.stream.outputs():
            tokens = output.tokens
            if output.finish is not None and output.finish.type == "stop" and tokens[-1:] == [output.finish.matched]:
                tokens = tokens[:-1]
            if tokens:
                yield tokens
