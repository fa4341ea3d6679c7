"""Prefill and decode apart, joined by NIXL: the tokens of ``model.generate``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from benchmarks.reference import Reference
from components.aio import child
from components.engines.base import EngineError, Prompt
from components.protocol import Sampling
from tests.engines.pair import TOKENS, Engines, ask, greedy, picture, running_engines, slow
from tests.model import MODEL
from tests.waiting import until


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines() -> AsyncIterator[Engines]:
    async with running_engines() as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(str(MODEL), threads=1)


CASES = [("Hello there!", ()), ("What is it? " * 30, ()), ("What do you see?", (1,)), ("Compare.", (2, 3, 4))]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("text", "seeds"), CASES)
async def test_tokens_equal_generate(engines: Engines, reference: Reference, text: str, seeds: tuple[int, ...]) -> None:
    pictures = [picture(seed, (224, 160 + 32 * (seed % 3))) for seed in seeds]
    messages, ids = ask(reference, text, len(pictures))
    expected = reference.chat(messages, pictures, TOKENS).token_ids
    assert await engines.answer(ids, pictures, greedy) == expected
    await engines.idle()


@pytest.mark.asyncio(loop_scope="module")
async def test_tokens_do_not_depend_on_who_shares_the_batch(engines: Engines, reference: Reference) -> None:
    asked = [(f"Question {n}? " * (1 + 3 * (n % 4)), [picture(n)] if n % 2 else []) for n in range(8)]
    prompts = [ask(reference, text, len(pictures)) for text, pictures in asked]
    expected = [
        reference.chat(messages, pictures, TOKENS).token_ids
        for (messages, _), (_, pictures) in zip(prompts, asked, strict=True)
    ]
    answers = await asyncio.gather(
        *(engines.answer(ids, pictures, greedy) for (_, ids), (_, pictures) in zip(prompts, asked, strict=True))
    )
    assert answers == expected
    await engines.idle()


@pytest.mark.asyncio(loop_scope="module")
async def test_the_bytes_that_moved_are_those_of_the_kv(engines: Engines, reference: Reference) -> None:
    _, ids = ask(reference, "What do you see?", 1)
    reservation, first, length = await engines.first(ids, [picture(9)], greedy)
    pool = engines.decode.pool
    assert first.kv_bytes == pool.layers * 2 * length * pool.token_bytes
    assert first.lane
    reservation.release()
    await engines.idle()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_seed_repeats_and_another_differs(engines: Engines, reference: Reference) -> None:
    _, ids = ask(reference, "Tell me something.", 0)

    async def drawn(seed: int) -> list[int]:
        return await engines.answer(ids, [], Sampling(max_tokens=TOKENS, temperature=2.0, seed=seed, ignore_eos=True))

    once, again, *others = await asyncio.gather(drawn(1), *map(drawn, range(1, 7)))
    assert once == again
    assert any(other != once for other in others)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_an_answer_can_be_continued_from_its_beginning(
    engines: Engines, reference: Reference, temperature: float
) -> None:
    """What another worker does when one dies in the middle of an answer."""
    _, ids = ask(reference, "Tell me something.", 1)

    def sampling(drawn: int) -> Sampling:
        return Sampling(max_tokens=TOKENS - drawn, temperature=temperature, seed=5, ignore_eos=True, drawn=drawn)

    whole = await engines.answer(ids, [picture(5)], sampling(0))
    for begun in (1, 10):
        rest = await engines.answer([*ids, *whole[:begun]], [picture(5)], sampling(begun))
        assert whole[:begun] + rest == whole


@pytest.mark.asyncio(loop_scope="module")
async def test_a_reader_that_leaves_gives_everything_back(engines: Engines, reference: Reference) -> None:
    _, ids = ask(reference, "What do you see?", 0)
    long = Sampling(max_tokens=1000, temperature=0.0, ignore_eos=True)
    reservation, first, _ = await engines.first(ids, [], long)
    async with aclosing(engines.decode.generate(reservation, first.token, first.next_position, long, b"")) as stream:
        async for _ in stream:
            break
    reservation.release()
    await engines.idle()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_cancelled_prefill_gives_everything_back(engines: Engines, reference: Reference) -> None:
    _, ids = ask(reference, "What do you see?", 1)
    for steps in range(12):
        task = asyncio.create_task(engines.first(ids, [picture(steps)], greedy))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(outcome, asyncio.CancelledError)
    await engines.idle()


SHORT = 0.1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_transfers_deadline_does_not_run_while_a_prompt_computes_or_waits(
    engines: Engines, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.prefill, "_deadline", SHORT)
    monkeypatch.setattr(engines.decode, "_deadline", SHORT)
    prompts = [ask(reference, text, 0) for text in ("Hello there!", "And you?")]
    expected = [reference.chat(messages, [], TOKENS).token_ids for messages, _ in prompts]
    with slow(engines) as (there, go):
        computing = asyncio.create_task(engines.answer(prompts[0][1], [], greedy))
        await until(there.is_set, lambda: computing)
        waiting = asyncio.create_task(engines.answer(prompts[1][1], [], greedy))
        await asyncio.sleep(5 * SHORT)
        go.set()
        assert [await computing, await waiting] == expected
    await engines.idle()


@pytest.mark.asyncio(loop_scope="module")
async def test_bytes_that_do_not_arrive_in_time_are_a_failed_transfer(
    engines: Engines, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.prefill, "_deadline", SHORT)
    _, ids = ask(reference, "Hello there!", 0)
    reservation = await engines.decode.reserve(len(ids), greedy, b"", 60)

    async def target() -> bytes:
        return reservation.target

    go = threading.Event()
    # The decode worker's data plane stands still.
    engines.connectors[1]._do(lambda _: go.wait(30) and None, lambda _: None)
    try:
        with pytest.raises(EngineError, match="after the last layer") as failed:
            writing = engines.prefill.prefill(Prompt(tuple(ids), (), greedy), child(target()), 60)
            await asyncio.wait_for(writing, 20)
        assert failed.value.code == "transfer_failed" and failed.value.retryable
    finally:
        go.set()
    reservation.release()
    await engines.idle()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_target_of_another_layout_is_refused(engines: Engines, reference: Reference) -> None:
    _, ids = ask(reference, "What do you see?", 0)
    reservation = await engines.decode.reserve(len(ids) + 1, greedy, b"", 60)

    async def target() -> bytes:
        return reservation.target

    with pytest.raises(EngineError) as refused:
        await engines.prefill.prefill(Prompt(tuple(ids), (), greedy), child(target()), 60)
    assert refused.value.code == "transfer_failed"
    reservation.release()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_prefill_cancelled_while_it_fails_gives_everything_back(engines: Engines, reference: Reference) -> None:
    """A decode worker that dies makes the write fail and the call close, in whatever order."""
    _, ids = ask(reference, "What do you see?", 0)

    async def target() -> bytes:
        raise EngineError("peer_lost", "the decode worker died", retryable=True)

    for steps in range(1, 13):
        task = asyncio.create_task(engines.prefill.prefill(Prompt(tuple(ids), (), greedy), child(target()), 60))
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)
    await engines.idle()
