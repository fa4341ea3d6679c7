"""Load on the stacks, in turns, and what is said of it in numbers."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.sglang_stacks import Question, Stack, Timing

ALONE, EACH = 3, 2
"""Requests of one turn: one at a time, and of each of several clients."""


@dataclass
class Turns:
    """What one stack answered: a list of timings a turn, and the seconds that each turn took."""

    timings: list[list[Timing]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failure: str = ""


async def one_turn(stack: Stack, questions: Iterator[Question], at_once: int, tokens: int) -> list[Timing]:
    """``at_once`` clients, each of which asks its next question when it has the last token of the one before."""

    async def client() -> list[Timing]:
        return [await stack.ask(next(questions), tokens) for _ in range(ALONE if at_once == 1 else EACH)]

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client()) for _ in range(at_once)]
    return [timing for client in clients for timing in client.result()]


async def in_turns(
    stacks: Sequence[Stack],
    questions: Iterator[Question],
    *,
    at_once: int,
    tokens: int,
    seconds: float,
    at_least: int = 1,
) -> dict[str, Turns]:
    """As many turns of all as take about ``seconds`` in all; what goes first changes each time.

    A stack that fails is asked no more, and ``failure`` says why. Raises RuntimeError when the others did not do the
    same work.
    """
    result = {stack.name: Turns() for stack in stacks}
    began, longest, turn = time.perf_counter(), 0.0, 0
    while turn < at_least or time.perf_counter() - began + longest / 2 < seconds:
        turn_began = time.perf_counter()
        for stack in stacks if turn % 2 == 0 else reversed(stacks):
            turns = result[stack.name]
            if turns.failure:
                continue
            stack_began = time.perf_counter()
            try:
                turns.timings.append(await one_turn(stack, questions, at_once, tokens))
            except Exception:  # noqa: BLE001 (whatever it is, the other stacks are measured)
                turns.failure = traceback.format_exc()
            turns.seconds.append(time.perf_counter() - stack_began)
        longest = max(longest, time.perf_counter() - turn_began)
        turn += 1
    done = [each for turns in result.values() if not turns.failure for each in turns.timings]
    work = {(timing.prompt_tokens, timing.tokens) for each in done for timing in each}
    if len(work) > 1:
        raise RuntimeError(f"prompts and answers of different lengths: {sorted(work)}")
    return result


def summary(turns: Turns) -> dict[str, float]:
    """Milliseconds and tokens a second. ``itl`` is between two arrivals, ``token`` the mean of a request's tokens after
    the first; ``spread`` of both medians is how far this stack's own turns are apart."""
    timings = [timing for turn in turns.timings for timing in turn]
    first = [ttft(timing) for timing in timings]
    gaps = [gap * 1e3 for timing in timings for gap in map(_difference, pairwise(timing.times))]
    return {
        "requests": len(timings),
        "turns": len(turns.timings),
        "ttft p50": statistics.median(first),
        "ttft p99": percentile(first, 99),
        "ttft spread": _spread([statistics.median(map(ttft, turn)) for turn in turns.timings]),
        "itl p50": statistics.median(gaps),
        "itl p99": percentile(gaps, 99),
        "token p50": statistics.median(map(per_token, timings)),
        "token spread": _spread([statistics.median(map(per_token, turn)) for turn in turns.timings]),
        "tokens/s": sum(timing.tokens for timing in timings) / sum(turns.seconds),
    }


def ttft(timing: Timing) -> float:
    """Milliseconds from sending to the first text."""
    return (timing.times[0] - timing.sent) * 1e3


def per_token(timing: Timing) -> float:
    """Milliseconds a token after the first; independent of how many tokens come together."""
    return (timing.times[-1] - timing.times[0]) * 1e3 / max(1, timing.tokens - 1)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _difference(pair: tuple[float, float]) -> float:
    return pair[1] - pair[0]


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)
