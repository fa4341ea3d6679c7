"""The language model of Qwen2.5-VL as a decode engine: KV from outside in, tokens out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

import torch

from components.aio import to_the_end
from components.engines.base import EngineError, Reservation
from components.engines.transformers.batch import Batch, Running
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.kv import KVPool, Run, head, slots
from components.engines.transformers.sampling import Sampler
from components.nixl_connect import Connector, Descriptor, TransferError, WritableOperation
from components.protocol import Sampling


class KVReservation:
    """KV memory of one request, exposed to be written by whoever holds ``target`` (an ``RdmaMetadata`` as JSON)."""

    def __init__(self, pool: KVPool, runs: list[Run], prompt_tokens: int, operation: WritableOperation) -> None:
        self.target = operation.metadata().model_dump_json().encode()
        self.prompt_tokens = prompt_tokens
        self.runs = runs
        self.operation = operation
        self._pool = pool
        self._released: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        pass  # Only prefill can fail here, and it says so itself.

    def release(self) -> None:
        if self._released is None:
            self.operation.cancel()
            self._released = asyncio.create_task(self._give_back())

    async def _give_back(self) -> None:
        # Not before the operation lets go: a late write must not land in the next request's KV.
        await self.operation.wait_for_release()
        self._pool.release(self.runs)


class TransformersDecodeEngine:
    """Loads the language model alone. One thread takes the steps; requests join and leave between two of them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        connector: Connector,
        *,
        kv_tokens: int,
        block_tokens: int,
        max_batch: int,
        deadline: float,
    ) -> None:
        text = checkpoint.config.text_config
        self.max_context = min(checkpoint.max_context, kv_tokens)
        self._connector = connector
        self._deadline = deadline
        self._max_batch = max_batch
        self._block = block_tokens
        self._model = checkpoint.language_model()
        self.pool = KVPool(
            text.num_hidden_layers,
            kv_tokens,
            text.num_key_value_heads,
            text.hidden_size // text.num_attention_heads,
            dtype=checkpoint.dtype,
            device=checkpoint.device,
        )
        self._region = Descriptor(self.pool.tensor)
        self._batch = Batch(self._model, self.pool)
        self._running: list[_Request] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._decode, name="decode", daemon=True)

    async def start(self) -> None:
        await self._region.register_memory(self._connector)
        self._warm_up()
        self._thread.start()

    def held(self) -> dict[str, int]:
        return {"KV tokens": self.pool.used}

    async def close(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        await self._region.deregister_memory(self._connector)

    def check(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self.max_context:
            raise EngineError(
                "prompt_too_long",
                f"The prompt has {prompt_tokens} tokens; with at least one of the answer, the most is "
                f"{self.max_context}.",
            )

    async def reserve(self, prompt_tokens: int, sampling: Sampling, source: bytes, seconds: float) -> Reservation:
        # Whole blocks: what is left between two requests stays big enough for a third.
        blocks = -(-(prompt_tokens + sampling.max_tokens) // self._block)
        runs = await self.pool.acquire(blocks * self._block)
        try:
            pieces = self.pool.pieces(head(runs, prompt_tokens))
            operation = await self._connector.create_writable([Descriptor(piece) for piece in pieces], lease=seconds)
        except BaseException:
            self.pool.release(runs)
            raise
        return KVReservation(self.pool, runs, prompt_tokens, operation)

    async def generate(
        self, reservation: Reservation, first_token: int, next_position: int, sampling: Sampling, handover: bytes
    ) -> AsyncGenerator[list[int], None]:
        assert isinstance(reservation, KVReservation)
        try:
            async with asyncio.timeout(self._deadline):  # Prefill said that all of it has landed.
                await reservation.operation.wait_for_completion()
        except (TransferError, TimeoutError) as error:
            raise EngineError("transfer_failed", f"KV did not arrive: {error or 'in time'}", retryable=True) from error
        request = _Request(reservation, first_token, next_position, sampling)
        if request.accept(first_token):
            with self._wake:
                self._running.append(request)
                self._wake.notify()
        request.deliver([first_token] if request.count else [])
        try:
            async for tokens in request.stream():
                yield tokens
        finally:
            request.finished = True
            if request in self._running:
                # The step under way may still write this request's KV: its memory is not free before that ends.
                await to_the_end(request.left.wait())

    def _decode(self) -> None:
        while True:
            with self._wake:
                for request in [request for request in self._running if request.finished]:
                    self._running.remove(request)
                    self._loop.call_soon_threadsafe(request.left.set)
                self._wake.wait_for(lambda: self._running or self._stopping)
                if self._stopping:
                    return
                # Oldest first; those beyond the batch's size wait for one to leave.
                active = [request for request in self._running if not request.finished][: self._max_batch]
            if not active:
                continue
            try:
                tokens = self._batch.step([request.running for request in active])
            except RuntimeError as error:  # torch's: out of memory, a bad kernel; the worker goes on
                for request in active:
                    request.finished = True
                self._loop.call_soon_threadsafe(self._fail, active, f"decode failed: {error}")
                continue
            news = [(request, token) for request, token in zip(active, tokens, strict=True) if request.accept(token)]
            ended = [request for request in active if request.finished]
            self._loop.call_soon_threadsafe(self._deliver, news, ended)

    @staticmethod
    def _deliver(news: list[tuple[_Request, int]], ended: list[_Request]) -> None:
        for request, token in news:
            request.deliver([token])
        for request in ended:
            request.deliver([])

    @staticmethod
    def _fail(requests: list[_Request], message: str) -> None:
        for request in requests:
            request.fail(EngineError("internal", message))

    def _warm_up(self) -> None:
        slot = torch.zeros(2, dtype=torch.long)
        running = Running(slots=slot, length=1, position=1, token=0, sampler=Sampler(Sampling(max_tokens=1)))
        self._batch.step([running])


class _Request:
    """One request between the thread that decodes and the task that streams."""

    def __init__(self, reservation: KVReservation, first_token: int, next_position: int, sampling: Sampling) -> None:
        self.running = Running(
            slots=slots(reservation.runs),
            length=reservation.prompt_tokens,
            position=next_position,
            token=first_token,
            sampler=Sampler(sampling),
            drawn=sampling.drawn + 1,
        )
        self.count = 0
        self.finished = False
        self.left = asyncio.Event()
        self._max_tokens = sampling.max_tokens
        self._stops = frozenset(() if sampling.ignore_eos else sampling.stop_token_ids)
        self._news = asyncio.Event()
        self._tokens: list[int] = []
        self._ended = False
        self._error: EngineError | None = None

    def accept(self, token: int) -> bool:
        """Count a new token; False when it is a stop token. Sets ``finished`` after the last. The decoding thread's."""
        if token in self._stops:
            self.finished = True
            return False
        self.count += 1
        self.finished = self.finished or self.count >= self._max_tokens
        return True

    def deliver(self, tokens: list[int]) -> None:
        self._tokens += tokens
        self._ended = self.finished
        self._news.set()

    def fail(self, error: EngineError) -> None:
        self._error, self._ended = error, True
        self._news.set()

    async def stream(self) -> AsyncGenerator[list[int], None]:
        while True:
            await self._news.wait()
            self._news.clear()
            tokens, self._tokens = self._tokens, []
            if tokens:
                yield tokens
            if self._error:
                raise self._error
            if self._ended and not self._tokens:
                return
