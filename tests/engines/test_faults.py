"""What fails in an engine fails for those it concerns; a thread that ends ends the worker; one that hangs is seen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import NoReturn

import pytest
import torch

from benchmarks.reference import Reference
from components import background
from components.engines.base import EngineError, check_token_ids
from components.engines.transformers import compute
from components.engines.transformers.decode import KVReservation
from components.engines.transformers.sampling import Sampler, choose
from components.protocol import COLDEST, NARROWEST, Sampling
from tests.engines.pair import TOKENS, Engines, ask, greedy, running_engines, slow
from tests.model import MODEL
from tests.waiting import until


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    async with running_engines() as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(str(MODEL), threads=1)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What would end the process."""
    reasons: list[str] = []
    with background.ends_process(reasons.append):
        yield reasons


async def test_a_prompt_that_fails_takes_no_other_with_it(
    engines: Engines, reference: Reference, heard: list[str]
) -> None:
    """An id that the model has no row for, which the panels refuse: on a CPU an IndexError."""
    prompts = [ask(reference, text, 0) for text in ("Hello there!", "And you?")]
    expected = [reference.chat(messages, [], TOKENS).token_ids for messages, _ in prompts]
    with slow(engines) as (there, go):
        first = asyncio.create_task(engines.answer(prompts[0][1], [], greedy))
        await until(there.is_set, lambda: first)
        # Computed in one batch, all that waits behind the first.
        bad = asyncio.create_task(engines.answer([10**9], [], greedy))
        second = asyncio.create_task(engines.answer(prompts[1][1], [], greedy))
        await until(lambda: engines.prefill._queue.qsize() == 2, engines.prefill._queue.qsize)
        go.set()
        with pytest.raises(EngineError, match="IndexError") as failed:
            await bad
    assert failed.value.code == "internal"
    assert [await first, await second] == expected
    await engines.idle()
    assert heard == []


async def test_a_step_that_fails_takes_no_other_answer_with_it(
    engines: Engines, reference: Reference, heard: list[str]
) -> None:
    """KV that is not numbers: greedily the answer would be any token."""
    messages, ids = ask(reference, "Hello there!", 0)
    expected = reference.chat(messages, [], TOKENS).token_ids
    reservation, first, _ = await engines.first(ids, [], greedy)
    assert isinstance(reservation, KVReservation)
    for piece in engines.decode.pool.pieces(reservation.runs):
        piece.fill_(torch.nan)

    async def bad() -> None:
        async for _ in engines.decode.generate(reservation, first.token, first.next_position, greedy, b""):
            pass

    answers = [asyncio.create_task(engines.answer(ids, [], greedy)) for _ in range(3)]
    with pytest.raises(EngineError, match="not finite") as failed:
        await bad()
    reservation.release()
    assert failed.value.code == "internal"
    assert [await answer for answer in answers] == [expected] * 3
    await engines.idle()
    assert heard == []


def memory_error(*_: object) -> NoReturn:
    raise MemoryError


async def test_the_end_of_decodes_thread_ends_every_request_and_the_process(
    engines: Engines, reference: Reference, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ids = ask(reference, "Hello there!", 0)
    long = Sampling(max_tokens=1000, ignore_eos=True)
    running = [asyncio.create_task(engines.answer(ids, [], long)) for _ in range(2)]
    waiting = await engines.decode.reserve(len(ids), greedy, b"", 60)
    watching = asyncio.create_task(waiting.watch())
    await until(lambda: len(engines.decode._running) == 2, lambda: running)
    monkeypatch.setattr(engines.decode._thread, "each", memory_error)
    for request in (*running, watching):
        with pytest.raises(EngineError) as failed:
            await asyncio.wait_for(request, 10)
        assert failed.value.code == "unavailable" and failed.value.retryable
    with pytest.raises(EngineError) as refused:
        await engines.decode.reserve(len(ids), greedy, b"", 60)
    assert refused.value.code == "unavailable"
    waiting.release()
    await engines.idle()
    await until(lambda: heard == ["decode ended unexpectedly"], lambda: heard)


async def test_the_end_of_prefills_thread_ends_every_request_and_the_process(
    engines: Engines, reference: Reference, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ids = ask(reference, "Hello there!", 0)
    with slow(engines) as (there, go):
        running = asyncio.create_task(engines.first(ids, [], greedy))
        await until(there.is_set, lambda: running)
        queued = asyncio.create_task(engines.first(ids, [], greedy))
        await until(lambda: engines.prefill._queue.qsize() == 1, engines.prefill._queue.qsize)
        monkeypatch.setattr(engines.prefill, "_resolve", memory_error)
        go.set()
        for request in (running, queued):
            with pytest.raises(EngineError) as failed:
                await asyncio.wait_for(request, 10)
            assert failed.value.code == "unavailable" and failed.value.retryable
    with pytest.raises(EngineError) as refused:
        await engines.first(ids, [], greedy)
    assert refused.value.code == "unavailable"
    await engines.idle()
    await until(lambda: heard == ["prefill ended unexpectedly"], lambda: heard)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "SLOW_SECONDS", 0.1)


async def test_a_step_that_does_not_end_is_seen(
    impatient: None, engines: Engines, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    _, ids = ask(reference, "Hello there!", 0)

    def held() -> int:
        return engines.prefill.held()["seconds in this step"]

    with caplog.at_level(logging.WARNING), slow(engines) as (_, go):
        first = asyncio.create_task(engines.first(ids, [], greedy))
        await until(lambda: held() >= 1, held)
        go.set()
        (await first)[0].release()
    said = [record.message for record in caplog.records if "takes more than" in record.message]
    assert said == ["prefill of 1 takes more than 0.1 s"]
    assert held() == 0


async def test_an_engine_whose_thread_hangs_can_be_closed(
    engines: Engines, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "_LAST_SECONDS", 0.1)
    _, ids = ask(reference, "Hello there!", 0)
    with slow(engines) as (there, _):
        hung = asyncio.create_task(engines.first(ids, [], greedy))
        await until(there.is_set, lambda: hung)
        assert not await asyncio.wait_for(_close(engines), 10)
    (await hung)[0].release()


async def _close(engines: Engines) -> bool:
    engines.prefill._queue.put(None)
    return await engines.prefill._thread.close()


def test_ids_that_the_model_has_no_row_for_are_refused() -> None:
    check_token_ids([], 10)
    check_token_ids([0, 9], 10)
    for wrong in ([10], [3, 10**9], [-1]):
        with pytest.raises(EngineError) as refused:
            check_token_ids(wrong, 10)
        assert refused.value.code == "invalid_request"


LOGITS = torch.tensor([[1.0, 3.0, 2.0, -5.0]])


@pytest.mark.parametrize("scale", [1e2, 1e30])
def test_the_lowest_numbers_of_sampling_choose_the_best_token(scale: float) -> None:
    """What the protocol lets through."""
    coldest = Sampler(Sampling(max_tokens=1, temperature=COLDEST, seed=-(2**63)))
    narrowest = Sampler(Sampling(max_tokens=1, temperature=2.0, top_p=NARROWEST, seed=2**63 - 1))
    assert choose(LOGITS.repeat(2, 1) * scale, [coldest, narrowest], [0, 2**63 - 1]) == [1, 1]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(wrong: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[0, 2] = wrong
    with pytest.raises(EngineError, match="not finite"):
        choose(logits, [Sampler(Sampling(max_tokens=1, temperature=temperature))], [0])
