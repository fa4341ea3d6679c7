from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Self

from tensorrt_llm.disaggregated_params import DisaggregatedParams


@dataclass(slots=True)
class CompletionOutput:
    """``token_ids`` are those of the whole answer so far."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    disaggregated_params: DisaggregatedParams | None = None


@dataclass
class Response:
    """New tokens of a request, or what ended it."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    params: DisaggregatedParams | None = None
    error: RuntimeError | None = None


class GenerationResult:
    def __init__(self, request_id: int, prompt_token_ids: list[int], abort: Callable[[], None]) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.outputs = [CompletionOutput(0)]
        self.disaggregated_params: DisaggregatedParams | None = None
        self.responses: asyncio.Queue[Response] = asyncio.Queue()
        self._abort = abort
        self._aborted = False
        self._done = False

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self._aborted = True
        self._abort()

    def aborted(self) -> bool:
        return self._aborted

    async def aresult(self) -> Self:
        while not self._done:
            await self._step()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.aresult().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Self:
        if self._done:
            raise StopAsyncIteration
        await self._step()
        return self

    async def _step(self) -> None:
        response = await self.responses.get()
        output = self.outputs[0]
        output.token_ids = [*output.token_ids, *response.tokens]
        output.finish_reason = response.finish_reason
        if response.params is not None:
            self.disaggregated_params = output.disaggregated_params = response.params
        self._done = response.finish_reason is not None or response.error is not None
        if response.error is not None:
            raise response.error
