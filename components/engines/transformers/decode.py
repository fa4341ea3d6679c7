"""The language model of Qwen2.5-VL as a decode engine: KV from outside in, tokens out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence

import torch

from components import background
from components.aio import on_thread, to_the_end
from components.engines.base import EngineError, Reservation
from components.engines.transformers.batch import Batch, Running
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.compute import ComputeThread
from components.engines.transformers.kv import KVPool, Run, head, slots
from components.engines.transformers.sampling import Sampler
from components.nixl_connect import Connector, Descriptor, TransferError, WritableOperation
from components.protocol import Sampling, context_exceeded


class KVReservation:
    """KV memory of one request, exposed to be written by whoever holds ``target`` (an ``RdmaMetadata`` as JSON)."""

    def __init__(
        self,
        pool: KVPool,
        runs: list[Run],
        prompt_tokens: int,
        operation: WritableOperation,
        thread: ComputeThread,
    ) -> None:
        self.target = operation.metadata().model_dump_json().encode()
        self.prompt_tokens = prompt_tokens
        self.runs = runs
        self.operation = operation
        self._pool = pool
        self._thread = thread
        self._released: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        await self._thread.death()  # A prefill that fails says so itself.

    def release(self) -> None:
        if self._released is None:
            self.operation.cancel()
            self._released = background.task(self._give_back(), "release of KV memory")

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
        self.vocabulary = checkpoint.vocabulary
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
        self._thread = ComputeThread("decode", checkpoint.device, self._decode, died=self._fail)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._region.register_memory(self._connector)
        await on_thread(self._warm_up, "warm up")
        self._thread.start()

    def held(self) -> dict[str, int]:
        return {"KV tokens": self.pool.used, "seconds in this step": int(self._thread.step_seconds)}

    async def close(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await self._thread.close()
        await self._region.deregister_memory(self._connector)

    def check(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self.max_context:
            raise EngineError("context_length_exceeded", context_exceeded(self.max_context, prompt_tokens))

    async def reserve(self, prompt_tokens: int, sampling: Sampling, source: bytes, seconds: float) -> Reservation:
        # Whole blocks: what is left between two requests stays big enough for a third.
        blocks = -(-(prompt_tokens + sampling.max_tokens) // self._block)
        runs = await self.pool.acquire(blocks * self._block)
        try:
            self._thread.check()
            pieces = self.pool.pieces(head(runs, prompt_tokens))
            operation = await self._connector.create_writable([Descriptor(piece) for piece in pieces], lease=seconds)
        except BaseException:
            self.pool.release(runs)
            raise
        return KVReservation(self.pool, runs, prompt_tokens, operation, self._thread)

    async def generate(
        self, reservation: Reservation, first_token: int, next_position: int, sampling: Sampling, handover: bytes
    ) -> AsyncGenerator[list[int], None]:
        assert isinstance(reservation, KVReservation)
        if first_token >= self.vocabulary or next_position > reservation.prompt_tokens:
            raise EngineError("internal", f"prefill answered with token {first_token} at position {next_position}")
        try:
            async with asyncio.timeout(self._deadline):  # Prefill said that all of it has landed.
                await reservation.operation.wait_for_completion()
        except (TransferError, TimeoutError) as error:
            why = str(error) or "not in time"
            raise EngineError("transfer_failed", f"KV did not arrive: {why}", retryable=True) from error
        self._thread.check()
        request = _Request(reservation, first_token, next_position, sampling)
        if first := request.accept(first_token):
            with self._wake:
                self._running.append(request)
                self._wake.notify()
        request.deliver(first)
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
            results = self._thread.each(self._step, active)
            news = [(request, request.take(result)) for request, result in zip(active, results, strict=True)]
            self._loop.call_soon_threadsafe(self._deliver, news)

    def _step(self, requests: Sequence[_Request]) -> list[int]:
        return self._batch.step([request.running for request in requests])

    @staticmethod
    def _deliver(news: list[tuple[_Request, list[int] | EngineError]]) -> None:
        for request, new in news:
            if isinstance(new, EngineError):
                request.fail(new)
            elif new or request.finished:
                request.deliver(new)

    def _fail(self, error: EngineError) -> None:
        with self._wake:
            running, self._running = self._running, []
        for request in running:
            request.fail(error)
            request.left.set()

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

    def accept(self, token: int) -> list[int]:
        """Count a new token; it, or nothing when it is a stop token. Sets ``finished`` after the last. The decoding
        thread's."""
        if token in self._stops:
            self.finished = True
            return []
        self.count += 1
        self.finished = self.finished or self.count >= self._max_tokens
        return [token]

    def take(self, result: int | EngineError) -> list[int] | EngineError:
        """What is new after a step."""
        if isinstance(result, EngineError):
            self.finished = True
            return result
        return self.accept(result)

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
