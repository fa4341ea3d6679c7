"""A whole stack with the real SGLang engine on a CPU: the tokens of ``model.generate``, and nothing left behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import httpx
import psutil
import pytest
import pytest_asyncio

from benchmarks.reference import Reference
from benchmarks.stack import Stack, running_stack
from components.messaging import CallError, Context
from components.messaging import Stream as Answers
from components.protocol import GenerateItem, GenerateRequest, Instance, Role, Sampling
from tests.e2e.conftest import Inside, join
from tests.e2e.test_tokens import SQUARE, TALL, TOKENS, WIDE, Case, greedy, picture, turn
from tests.model import MODEL
from tests.waiting import until

KV_TOKENS = 1024
CONTEXT = 704
LEASE_SECONDS = 20
# Small enough that the longer prompts below are prefilled, and their KV sent, in several chunks.
SETTINGS = [
    "engine=sglang",
    f"model.path={MODEL}",
    "model.name=tiny-vl",
    f"model.max_context={CONTEXT}",
    f"decode.kv_tokens={KV_TOKENS}",
    "prefill.max_batch_tokens=128",
    f"transfer.lease_seconds={LEASE_SECONDS}",
]
CASES = [
    Case(1, 1),
    Case(2, 300),
    Case(3, 5, (SQUARE,)),
    Case(4, 50, (WIDE,)),
    Case(5, 8, (TALL,)),
    Case(6, 20, (SQUARE, WIDE, TALL)),
    Case(7, 1, (TALL, TALL)),
    Case(8, 120, (SQUARE,)),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Leaving it checks that SIGTERM is still ours: every worker drains and ends with status 0."""
    with running_stack(sets=SETTINGS, cwd=tmp_path_factory.mktemp("sglang")) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(str(MODEL), threads=1)


@pytest_asyncio.fixture
async def inside(stack: Stack) -> AsyncIterator[Inside]:
    async with join(stack) as seat:
        yield seat


async def ask(inside: Inside, ids: list[int], pictures: list[bytes], sampling: Sampling = greedy) -> list[int]:
    (decode,) = inside.instances("decode").values()
    return (await inside.generate(decode, ids, pictures, sampling, model="tiny-vl"))[0]


async def test_tokens_equal_generate_one_by_one_and_all_at_once(inside: Inside, reference: Reference) -> None:
    asked = [(turn(reference, case), case.pictures) for case in CASES]
    expected = [reference.chat(messages, pictures, TOKENS).token_ids for (messages, _), pictures in asked]
    assert [await ask(inside, ids, pictures) for (_, ids), pictures in asked] == expected
    together = asyncio.gather(*(ask(inside, ids, pictures) for (_, ids), pictures in asked * 2))
    assert await together == expected * 2
    await inside.idle()


async def test_another_picture_changes_the_answer(inside: Inside, reference: Reference) -> None:
    """Same prompt, same shape: only the content's hash keeps SGLang's prefix cache from answering with the first."""
    messages, ids = turn(reference, Case(1, 5, (SQUARE,)))
    pictures = [picture(seed) for seed in range(50, 55)]
    answers = [await ask(inside, ids, [each]) for each in pictures]
    assert answers == [reference.chat(messages, [each], TOKENS).token_ids for each in pictures]
    assert len(set(map(tuple, answers))) > 1


async def test_a_salt_changes_no_answer(inside: Inside, reference: Reference) -> None:
    _, ids = turn(reference, CASES[2])
    plain = await ask(inside, ids, CASES[2].pictures)
    (decode,) = inside.instances("decode").values()
    for salt in ("ann", "bob", "ann"):
        tokens, _ = await inside.generate(decode, ids, CASES[2].pictures, greedy, model="tiny-vl", cache_salt=salt)
        assert tokens == plain
    await inside.idle()


async def test_an_answer_can_be_continued_from_its_beginning(inside: Inside, reference: Reference) -> None:
    _, ids = turn(reference, CASES[3])
    whole = await ask(inside, ids, CASES[3].pictures)
    for begun in (1, 10):
        sampling = Sampling(max_tokens=TOKENS - begun, ignore_eos=True, drawn=begun)
        assert whole[:begun] + await ask(inside, [*ids, *whole[:begun]], CASES[3].pictures, sampling) == whole


async def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(inside: Inside, reference: Reference) -> None:
    _, ids = turn(reference, CASES[4])
    whole = await ask(inside, ids, CASES[4].pictures)
    for at in (0, 5):
        stopped = await ask(inside, ids, CASES[4].pictures, Sampling(max_tokens=TOKENS, stop_token_ids=(whole[at],)))
        assert stopped == whole[: whole.index(whole[at])]
    one = await ask(inside, ids, CASES[4].pictures, Sampling(max_tokens=1, ignore_eos=True))
    assert one == whole[:1]
    await inside.idle()


async def test_the_answer_is_cut_to_the_context(inside: Inside, reference: Reference) -> None:
    (decode,) = inside.instances("decode").values()
    _, ids = turn(reference, Case(9, 300))
    sampling = Sampling(max_tokens=100_000, ignore_eos=True)
    tokens, done = await inside.generate(decode, ids, [], sampling, model="tiny-vl")
    assert CONTEXT - 8 <= len(ids) + len(tokens) <= CONTEXT
    assert done.finish_reason == "length"
    with pytest.raises(CallError) as refused:
        await ask(inside, [ids[0]] * CONTEXT, [])
    assert refused.value.code == "context_length_exceeded"
    await inside.idle()


async def test_who_hangs_up_gives_everything_back(stack: Stack, inside: Inside, reference: Reference) -> None:
    """Each takes more than half of the KV memory; were one not aborted, the next would wait for its end."""
    body = {
        "model": "tiny-vl",
        "messages": [{"role": "user", "content": "Tell me something."}],
        "max_tokens": KV_TOKENS // 2 + 50,
        "ignore_eos": True,
        "stream": True,
    }
    async with httpx.AsyncClient(base_url=stack.url, timeout=60) as http:
        for lines in (0, 1, 3, 10, 0, 2):
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                reading = response.aiter_lines()
                for _ in itertools.repeat(None, lines):
                    await anext(reading)
            await inside.idle()
    messages, ids = turn(reference, CASES[2])
    assert await ask(inside, ids, CASES[2].pictures) == reference.chat(messages, CASES[2].pictures, TOKENS).token_ids


def children(instance: Instance, title: str) -> list[psutil.Process]:
    found = psutil.Process(instance.pid).children(recursive=True)
    return [child for child in found if title in " ".join(child.cmdline())]


async def until_engine_requests(inside: Inside, instance: Instance, count: int) -> None:
    held: dict[str, int] = {}

    async def look() -> bool:
        held.update(await inside.held())
        return held.get(f"{instance.id} engine requests") == count

    await until(look, lambda: held)


async def test_workers_whose_engines_die_leave_and_come_back(inside: Inside, reference: Reference) -> None:
    """Decode's dies while one request is decoded and another waits for its KV, which prefill's, that stands still and
    dies next, will not send. Both in one test, because an engine takes half a minute to start."""
    messages, ids = turn(reference, CASES[2])
    expected = reference.chat(messages, CASES[2].pictures, TOKENS).token_ids
    _, text = turn(reference, CASES[0])
    roles: tuple[Role, ...] = ("decode", "prefill")
    decode, prefill = victims = [each for role in roles for each in inside.instances(role).values()]
    decoder, prefiller = (one for each in victims for one in children(each, "sglang::scheduler"))

    def asked(max_tokens: int) -> Answers[GenerateItem]:
        sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
        request = GenerateRequest(model="tiny-vl", token_ids=tuple(text), images=(), sampling=sampling)
        return inside.bus.stream(decode.subject, "generate", request, reply=GenerateItem, context=Context.new(60))

    async with asked(KV_TOKENS // 2) as decoding, asked(10) as waiting:
        await anext(decoding)  # it is in the middle of its answer
        prefiller.suspend()
        first = asyncio.ensure_future(anext(waiting))
        await until_engine_requests(inside, decode, 2)
        decoder.kill()
        # Sooner than prefill gives up on a transfer.
        with pytest.raises(CallError) as undecoded:
            await asyncio.wait_for(first, LEASE_SECONDS / 2)
        with pytest.raises(CallError) as undone:
            async for _ in decoding:
                pass
    assert {undecoded.value.code, undone.value.code} <= {"unavailable", "peer_lost"}
    assert undecoded.value.retryable
    prefiller.kill()

    def gone() -> bool:
        return all(each.id not in inside.instances(each.role) for each in victims)

    await until(gone, lambda: f"one of {decode.id}, {prefill.id} is still listed", within=30)
    await until(lambda: all(map(inside.instances, roles)), lambda: "not both came back", within=240)
    assert await ask(inside, ids, CASES[2].pictures) == expected
    await inside.idle()
