"""KV memory: one tensor, registered once, handed out in runs of tokens."""

from __future__ import annotations

import asyncio
import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from components.engines.base import EngineError


@dataclass(frozen=True, order=True)
class Run:
    """Tokens ``start`` to ``start + count`` of the pool, which lie side by side in every layer."""

    start: int
    count: int


class KVPool:
    """``tensor`` is (layers, 2, tokens, kv_heads, head_dim): all keys of a layer, then all its values.

    A request's tokens so are two pieces a layer and run, which is what NIXL moves best. Memory is given out in order of
    asking, so that a long prompt is not overtaken for ever by short ones.
    """

    def __init__(self, layers: int, tokens: int, heads: int, dim: int, *, dtype: torch.dtype, device: torch.device):
        # Zeros, not empty: a first touch of each page now instead of under the first request.
        self.tensor = torch.zeros(layers, 2, tokens, heads, dim, dtype=dtype, device=device)
        self.layers = layers
        self.tokens = tokens
        self.token_bytes = heads * dim * dtype.itemsize
        self.used = 0
        self._free = [Run(0, tokens)]
        self._waiting: deque[tuple[int, bool, asyncio.Future[list[Run]]]] = deque()

    async def acquire(self, tokens: int, *, contiguous: bool = False) -> list[Run]:
        """Wait for ``tokens`` tokens; one run when ``contiguous``. Raises EngineError when they can never be had."""
        if tokens > self.tokens:
            raise EngineError(
                "context_length_exceeded", f"{tokens} tokens of KV are needed, this worker has {self.tokens}"
            )
        if not self._waiting and (runs := self._take(tokens, contiguous)) is not None:
            return runs
        future: asyncio.Future[list[Run]] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, contiguous, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._serve()  # whoever stood behind may fit
            else:
                self.release(future.result())
            raise

    def release(self, runs: Sequence[Run]) -> None:
        """Give runs back and serve whoever waits. Only on the event loop's thread."""
        for run in runs:
            self.used -= run.count
            at = bisect.bisect(self._free, run)
            start, end = run.start, run.start + run.count
            if at < len(self._free) and self._free[at].start == end:
                end += self._free.pop(at).count
            if at > 0 and self._free[at - 1].start + self._free[at - 1].count == start:
                at -= 1
                start = self._free.pop(at).start
            self._free.insert(at, Run(start, end - start))
        self._serve()

    def pieces(self, runs: Sequence[Run]) -> list[torch.Tensor]:
        """Views in the order of the wire: layer by layer, its keys then its values, run by run."""
        return [
            self.tensor[layer, kv, run.start : run.start + run.count]
            for layer in range(self.layers)
            for kv in (0, 1)
            for run in runs
        ]

    def _take(self, tokens: int, contiguous: bool) -> list[Run] | None:
        if sum(run.count for run in self._free) < tokens:
            return None
        fitting = [run for run in self._free if run.count >= tokens]
        if fitting:
            chosen = [min(fitting, key=lambda run: run.count)]
        elif contiguous:
            return None
        else:
            chosen = sorted(self._free, key=lambda run: -run.count)
        runs = []
        for run in chosen:
            count = min(run.count, tokens)
            self._free.remove(run)
            if run.count > count:
                bisect.insort(self._free, Run(run.start + count, run.count - count))
            runs.append(Run(run.start, count))
            tokens -= count
            if tokens == 0:
                break
        self.used += sum(run.count for run in runs)
        return runs

    def _serve(self) -> None:
        while self._waiting:
            tokens, contiguous, future = self._waiting[0]
            if not future.cancelled():
                runs = self._take(tokens, contiguous)
                if runs is None:
                    return
                future.set_result(runs)
            self._waiting.popleft()


def head(runs: Sequence[Run], tokens: int) -> list[Run]:
    """The runs that hold the first ``tokens`` tokens."""
    result = []
    for run in runs:
        if tokens <= 0:
            break
        result.append(Run(run.start, min(run.count, tokens)))
        tokens -= run.count
    return result


def cut(run: Run, counts: Sequence[int]) -> list[Run]:
    """Cut one run into pieces of ``counts`` tokens, which must add up to it."""
    pieces, start = [], run.start
    for count in counts:
        pieces.append(Run(start, count))
        start += count
    return pieces


def slots(runs: Sequence[Run]) -> torch.Tensor:
    """Token i of the request → its row in the pool, (tokens,) int64."""
    return torch.cat([torch.arange(run.start, run.start + run.count) for run in runs])
