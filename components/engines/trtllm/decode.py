"""TensorRT-LLM as a decode engine: ``generation_only`` requests, each of which fetches its KV first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from components.aio import child
from components.engines.base import EngineError, Reservation
from components.engines.trtllm.handover import Handover
from components.engines.trtllm.llm import Health, check_finish, sampling_params, start, stops
from components.engines.trtllm.model import Model
from components.engines.trtllm.positions import mrope_handles
from components.engines.trtllm.release import DisaggregatedParams, known
from components.engines.trtllm.shared import Sharing
from components.protocol import Sampling, context_exceeded

log = logging.getLogger(__name__)


@dataclass
class _Admitted:
    """No memory of its own: TensorRT-LLM's scheduler gives a request its KV blocks when it takes it in."""

    target: bytes = b""

    async def watch(self) -> None:
        pass

    def release(self) -> None:
        pass


class TrtllmDecodeEngine:
    def __init__(self, model: Model, *, kv_tokens: int, max_batch: int, transfer_seconds: float) -> None:
        self.max_context = min(model.max_context, kv_tokens)
        self.vocabulary = model.vocabulary
        self._model = model
        self._answers: set[_Answer] = set()
        self._health = Health()
        self._llm = start(model, kv_tokens=kv_tokens, transfer_seconds=transfer_seconds, max_batch_size=max_batch)

    async def start(self) -> None:
        pass

    def held(self) -> dict[str, int]:
        return {"requests": len(self._answers)}

    async def close(self) -> None:
        await asyncio.gather(*(answer.ended() for answer in self._answers))
        await asyncio.to_thread(self._llm.shutdown)

    def check(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self.max_context:
            raise EngineError("context_length_exceeded", context_exceeded(self.max_context, prompt_tokens))

    async def reserve(self, prompt_tokens: int, sampling: Sampling, source: bytes, seconds: float) -> Reservation:
        return _Admitted()

    async def generate(
        self, reservation: Reservation, first_token: int, next_position: int, sampling: Sampling, handover: bytes
    ) -> AsyncGenerator[list[int], None]:
        if first_token in stops(sampling):
            return
        if sampling.max_tokens == 1:
            # Nothing to decode. The KV is not fetched: prefill frees it when the time for that is up.
            yield [first_token]
            return
        answer = self._submit(Handover.from_wire(handover), sampling)
        try:
            async for tokens in answer.tokens(first_token, stops(sampling)):
                yield tokens
        finally:
            answer.leave()

    def _submit(self, handover: Handover, sampling: Sampling) -> _Answer:
        self._health.check()
        sharing = Sharing()
        # Handles of embeddings stay away: with them, TensorRT-LLM refuses a generation_only request.
        fields = {"request_type": "generation_only", **handover.params()}
        if self._model.family.mrope:
            handles, _ = mrope_handles(self._model, handover.token_ids, handover.grids, sharing)
            fields |= handles
        with self._health.submitting():
            result = self._llm.generate_async(
                {"prompt_token_ids": list(handover.token_ids)},
                sampling_params(sampling, sampling.max_tokens),
                streaming=True,
                disaggregated_params=DisaggregatedParams(**known(DisaggregatedParams, fields)),
                cache_salt=handover.cache_salt or None,
            )
        answer = _Answer(result, sharing, self._health)
        self._answers.add(answer)
        answer.task.add_done_callback(lambda _: self._forget(answer))
        return answer

    def _forget(self, answer: _Answer) -> None:
        self._answers.discard(answer)
        if not answer.task.cancelled() and (error := answer.task.exception()):
            log.debug("request ended: %s", error)


class _Answer:
    """One request in the engine, read to its end by a task of its own, whoever still listens.

    Aborting before the first token would cut the KV transfer in the middle, which TensorRT-LLM's transceiver does not
    survive; so a reader that leaves early leaves the request to its first token.
    """

    def __init__(self, result: Any, sharing: Sharing, health: Health) -> None:
        self._result = result
        self._sharing = sharing
        self._health = health
        self._news = asyncio.Event()
        self._ids: list[int] = []
        self._left = False
        self.task = child(self._read(), name="answer")

    async def tokens(self, first_token: int, stops: frozenset[int]) -> AsyncGenerator[list[int], None]:
        """New tokens up to a stop token, which is not among them. Raises EngineError."""
        sent = 0
        while True:
            await self._news.wait()
            self._news.clear()
            ended = self.task.done()
            ids = self._ids
            if ids and ids[0] != first_token:
                # A release that leaves out the first token, or the KV of another prompt.
                raise EngineError("internal", "decode does not go on from the token that prefill computed")
            new = ids[sent:]
            sent = len(ids)
            stop = next((at for at, token in enumerate(new) if token in stops), None)
            if new[:stop]:
                yield new[:stop]
            if stop is not None:
                return
            if ended:
                self.task.result()
                return

    def leave(self) -> None:
        """Nobody listens any more: end the request as soon as that is safe. Idempotent; returns at once."""
        self._left = True
        if self._ids and not self._result.finished and not self._result.aborted():
            self._result.abort()

    async def ended(self) -> None:
        self.leave()
        await asyncio.wait([self.task])

    async def _read(self) -> None:
        try:
            with self._health.running():
                async for _ in self._result:
                    # The ids of the whole answer so far, the first token among them. token_ids_diff leaves that out.
                    self._ids = list(self._result.outputs[0].token_ids)
                    self._news.set()
                    if self._left:
                        self.leave()
            if not self._left:
                check_finish(self._result)
        finally:
            self._sharing.clear()
            asyncio.get_running_loop().call_soon(self._news.set)
