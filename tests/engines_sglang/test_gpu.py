"""SGLang through our panels on GPUs: the tokens of transformers in float16, and no byte on a slow lane.

    benchmarks/sglang_gpu.sh OUTPUT_DIRECTORY        this and the benchmark, on a machine with one GPU or two
    TRIPTYCH_SGLANG_DEVICES=cpu make test-sglang     a rehearsal in float32

With two GPUs prefill has the first, and encode and decode share the second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from benchmarks.reference import Answer, Reference
from benchmarks.stack import Stack, running_stack
from components.doctor.lanes import protocol_of
from tests.e2e.conftest import Inside, hop, join
from tests.e2e.test_tokens import SQUARE, TALL, TOKENS, WIDE, Case, greedy, turn
from tests.model import MODEL

GPUS = tuple(f"cuda:{index}" for index in range(min(2, torch.cuda.device_count())))
DEVICES = tuple(filter(None, os.environ.get("TRIPTYCH_SGLANG_DEVICES", "").split(","))) or GPUS
pytestmark = pytest.mark.skipif(not DEVICES, reason="no GPU here; the file's first lines say how it is run")

ON_GPU = DEVICES != ("cpu",)
DTYPE = "float16" if ON_GPU else "float32"
TIE = 0.06
"""Two scores as near as this are one in float16: its steps between 16 and 64 are 0.016 to 0.03."""
START_SECONDS = 150.0
CASES = [
    Case(1, 1),
    Case(2, 300),
    Case(3, 89),
    Case(4, 5, (SQUARE,)),
    Case(5, 50, (WIDE,)),
    Case(6, 8, (TALL,)),
    Case(7, 20, (SQUARE, WIDE, TALL)),
    Case(8, 1, (TALL, TALL)),
    Case(9, 120, (SQUARE,)),
    Case(10, 3, (WIDE,)),
    Case(10, 3, (TALL,)),
    Case(12, 13, (SQUARE, SQUARE)),
]


@dataclass(frozen=True)
class Running:
    stack: Stack
    ucx_logs: Path
    """What UCX chose, a file a process."""
    stop: Callable[[], None]

    def protocol(self, kind: str, ends: tuple[str, str]) -> set[str]:
        """A process of ours writes the end of its file when it ends; one of SGLang's, which is killed, does not."""
        logs = (log.read_text(errors="replace") for log in self.ucx_logs.iterdir())
        return {chosen for log in logs if (chosen := protocol_of(log, kind, *ends))}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("sglang-gpu")
    logs = folder / "ucx"
    logs.mkdir()
    settings = [
        "engine=sglang",
        f"model.path={MODEL}",
        "model.name=tiny-vl",
        f"model.dtype={DTYPE}",
        f"encode.device={DEVICES[-1]}",
        f"prefill.device={DEVICES[0]}",
        f"decode.device={DEVICES[-1]}",
    ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UCX_PROTO_INFO", "y")
        environment.setenv("UCX_LOG_FILE", f"{logs}/%p")
        with ExitStack() as life:
            stack = life.enter_context(running_stack(sets=settings, cwd=folder, within=START_SECONDS))
            yield Running(stack, logs, life.close)


@pytest_asyncio.fixture
async def inside(running: Running) -> AsyncIterator[Inside]:
    async with join(running.stack) as seat:
        yield seat


@pytest.fixture(scope="module")
def expected() -> list[tuple[list[int], Answer]]:
    """Prompts, and what transformers answers on the same GPU in the same type."""
    reference = Reference(str(MODEL), threads=4, device=DEVICES[0], dtype=getattr(torch, DTYPE))
    turns = [turn(reference, case) for case in CASES]
    return [
        (ids, reference.chat(messages, case.pictures, TOKENS, margins=True))
        for case, (messages, ids) in zip(CASES, turns, strict=True)
    ]


def departures(answers: list[list[int]], expected: list[tuple[list[int], Answer]]) -> dict[int, float]:
    """Which answers leave that of transformers, and how far its choice was above the next one there."""
    found = {}
    for number, (answer, (_, wanted)) in enumerate(zip(answers, expected, strict=True)):
        assert len(answer) == len(wanted.token_ids) == TOKENS
        if answer != wanted.token_ids:
            first = next(i for i, pair in enumerate(zip(answer, wanted.token_ids, strict=True)) if pair[0] != pair[1])
            found[number] = wanted.margins[first]
    return found


async def test_tokens_are_those_of_transformers_alone_and_eight_at_once(
    inside: Inside, expected: list[tuple[list[int], Answer]]
) -> None:
    (decode,) = inside.instances("decode").values()
    eight = asyncio.Semaphore(8)

    async def ask(ids: list[int], case: Case) -> list[int]:
        async with eight:
            return (await inside.generate(decode, ids, case.pictures, greedy, model="tiny-vl"))[0]

    asked = [(ids, case) for (ids, _), case in zip(expected, CASES, strict=True)]
    alone = departures([await ask(*each) for each in asked], expected)
    together = departures(await asyncio.gather(*(ask(*each) for each in asked)), expected)
    for how, left in (("alone", alone), ("eight at once", together)):
        print(f"{how}: {len(CASES) - len(left)} of {len(CASES)} answers equal; margins where others leave: {left}")
        assert all(margin <= TIE for margin in left.values()), (how, left)
        assert len(left) <= len(CASES) // 4, (how, left)
    assert len({tuple(answer.token_ids) for _, answer in expected}) > len(CASES) // 2  # else it would show little
    await inside.idle()


async def test_embedding_and_kv_take_the_fast_lane(running: Running, expected: list[tuple[list[int], Answer]]) -> None:
    """The last test: the stack ends with it."""
    async with join(running.stack) as inside:
        (decode,) = inside.instances("decode").values()
        ids, _ = expected[3]
        _, done = await inside.generate(decode, ids, CASES[3].pictures, greedy, model="tiny-vl")
        (read,) = hop(done.hops, "prefill", "read embedding")
    kind = DEVICES[0].partition(":")[0]
    assert read.lane == f"{kind}-{kind}" and read.bytes > 0
    ends = (DEVICES[0], DEVICES[-1])
    writes = running.protocol("write", ends)
    await asyncio.to_thread(running.stop)
    reads, writes = running.protocol("read", ends), writes | running.protocol("write", ends)
    print(f"READ of the embedding: {sorted(reads)}; WRITE of the KV: {sorted(writes)}")
    lane = "cuda_ipc" if ON_GPU else ""
    assert any("zero-copy" in each and lane in each for each in reads), reads
    assert any("zero-copy" in each and lane in each for each in writes), writes
    assert not any("emulation" in each for each in (*reads, *writes))
