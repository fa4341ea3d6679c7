"""The adapter against the contract: every token must be what the prompt, its pictures and positions call for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from tensorrt_llm import contract_model
from tensorrt_llm._torch.shared_tensor import shared_tensor
from tensorrt_llm.executor import CppExecutorError, RequestError

from components import background
from components.aio import child
from components.engines.base import EngineError, FirstToken, ImageRows, Prompt
from components.engines.trtllm.decode import TrtllmDecodeEngine
from components.engines.trtllm.encode import TrtllmEncodeEngine
from components.engines.trtllm.handover import Handover
from components.engines.trtllm.llm import Health
from components.engines.trtllm.model import Model
from components.engines.trtllm.prefill import TrtllmPrefillEngine
from components.media import content_hash
from components.nixl_connect import Connector, Pool
from components.protocol import Sampling
from tests.engines_trtllm import models
from tests.engines_trtllm.expected import expected
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = 12
SAMPLING = Sampling(max_tokens=TOKENS)


@dataclass
class Engines:
    model: Model
    encode: TrtllmEncodeEngine
    prefill: TrtllmPrefillEngine
    decode: TrtllmDecodeEngine
    pool: Pool

    def embed(self, pictures: list[Image.Image]) -> tuple[ImageRows, ...]:
        """As the panels do it: rows in registered memory."""
        prepared = [self.encode.prepare(picture) for picture in pictures]
        slots = [self.pool.allocate(each.tokens * self.encode.format.row_bytes) for each in prepared]
        self.encode.encode(prepared, slots)
        return tuple(
            ImageRows(each.grid, each.tokens, content_hash(picture.tobytes()), slot)
            for picture, each, slot in zip(pictures, prepared, slots, strict=True)
        )

    async def first(self, text: str, rows: tuple[ImageRows, ...], sampling: Sampling = SAMPLING) -> FirstToken:
        ids = self.prefill.expand(self.ids(text, len(rows)), [image.tokens for image in rows])
        return await self.prefill.prefill(Prompt(ids, rows, sampling), child(_target()), 60)

    async def rest(self, first: FirstToken, sampling: Sampling = SAMPLING) -> list[int]:
        reservation = await self.decode.reserve(0, sampling, b"", 60)
        stream = self.decode.generate(reservation, first.token, first.next_position, sampling, first.handover)
        return [token async for tokens in stream for token in tokens]

    async def answer(self, text: str, pictures: list[Image.Image], sampling: Sampling = SAMPLING) -> list[int]:
        rows = self.embed(pictures)
        tokens = await self.rest(await self.first(text, rows, sampling), sampling)
        for image in rows:
            image.slot.release()
        return tokens

    def ids(self, text: str, pictures: int) -> list[int]:
        placeholder = self.model.family.placeholder
        return list(self.model.tokenizer.encode(placeholder * pictures + text).ids)

    def expected(self, text: str, pictures: list[Image.Image]) -> list[int]:
        return expected(self.model, self.ids(text, len(pictures)), pictures, TOKENS)


async def _target() -> bytes:
    return b""


def picture(seed: int, size: tuple[int, int] = (112, 84)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Pool]:
    async with Connector() as connector:
        yield await connector.create_pool(1 << 20)


@pytest_asyncio.fixture(params=["qwen", "llava"], scope="module", loop_scope="module")
async def engines(
    request: pytest.FixtureRequest, pool: Pool, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engines]:
    model = Model.open(str(getattr(models, request.param)(tmp_path_factory.mktemp("model"))))
    encode = TrtllmEncodeEngine(model, max_batch=8)
    encode.warm_up()
    prefill = TrtllmPrefillEngine(model, kv_tokens=4096, max_batch_tokens=256, transfer_seconds=5)
    decode = TrtllmDecodeEngine(model, kv_tokens=4096, max_batch=8, transfer_seconds=5)
    yield Engines(model, encode, prefill, decode, pool)
    await prefill.close()
    await decode.close()


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[str]]:
    """What would end the process, which here is pytest's."""
    reasons: list[str] = []
    with background.ends_process(reasons.append):
        yield reasons


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left(engines: Engines, heard: list[str]) -> AsyncIterator[None]:
    yield
    assert heard == []
    await until(lambda: not any({**engines.decode.held(), **engines.prefill.held()}.values()), engines.decode.held)
    assert engines.pool.used == 0
    # A handle that nobody takes keeps its memory for ever.
    assert shared_tensor.offered() == 0


CASES = [("Hello there!", ()), ("What do you see?", (1,)), ("Compare them. 你好", (2, 3, 4))]


@pytest.mark.parametrize(("text", "seeds"), CASES)
async def test_tokens_are_those_of_the_prompt(engines: Engines, text: str, seeds: tuple[int, ...]) -> None:
    pictures = [picture(seed, (112, 56 + 28 * (seed % 3))) for seed in seeds]
    assert await engines.answer(text, pictures) == engines.expected(text, pictures)


async def test_another_picture_is_another_answer(engines: Engines) -> None:
    assert await engines.answer("What?", [picture(1)]) != await engines.answer("What?", [picture(2)])


@pytest.mark.parametrize("salt", ["", "ann"])
async def test_a_salt_reaches_both_engines(engines: Engines, salt: str) -> None:
    contract_model.salts.clear()
    ids = engines.prefill.expand(engines.ids("What?", 0), [])
    first = await engines.prefill.prefill(Prompt(ids, (), SAMPLING, salt), child(_target()), 60)
    assert await engines.rest(first) == engines.expected("What?", [])
    assert contract_model.salts == [salt or None] * 2


async def test_many_at_once(engines: Engines) -> None:
    asked = [(f"Question {number}", [picture(number)] * (number % 3)) for number in range(8)]
    answers = await asyncio.gather(*(engines.answer(text, pictures) for text, pictures in asked))
    assert answers == [engines.expected(text, pictures) for text, pictures in asked]


async def test_the_slots_may_be_used_again_as_soon_as_prefill_is_done(engines: Engines) -> None:
    tokens = engines.expected("What?", [picture(1)])
    rows = engines.embed([picture(1)])
    first = await engines.first("What?", rows)
    rows[0].slot.numpy()[:] = 0
    assert await engines.rest(first) == tokens
    rows[0].slot.release()


@pytest.mark.parametrize("at", [0, 1, 5])
async def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(engines: Engines, at: int) -> None:
    text = next(text for n in range(99) if (tokens := engines.expected(text := f"Ask {n}", [])).index(tokens[at]) == at)
    tokens = engines.expected(text, [])
    sampling = Sampling(max_tokens=TOKENS, stop_token_ids=(tokens[at],))
    assert await engines.answer(text, [], sampling) == tokens[:at]
    assert await engines.answer(text, [], msgspec.structs.replace(sampling, ignore_eos=True)) == tokens


async def test_one_token_needs_no_decode(engines: Engines) -> None:
    sampling = Sampling(max_tokens=1)
    first = await engines.first("One", (), sampling)
    assert await engines.rest(replace(first, handover=b"not looked at"), sampling) == engines.expected("One", [])[:1]


async def test_a_reader_that_leaves_before_the_first_token_does_not_cut_the_transfer(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract_model, "transfers_held", True)
    monkeypatch.setattr(contract_model, "pace", 0.005)
    long = Sampling(max_tokens=10_000)
    first = await engines.first("Hello", (), long)
    leaving = asyncio.create_task(engines.rest(first, long))
    await until(lambda: engines.decode.held()["requests"] == 1, engines.decode.held)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert engines.decode.held() == {"requests": 1}, "the transfer still runs"
    monkeypatch.setattr(contract_model, "transfers_held", False)
    # Now the request is aborted; the contract's engine dies of an abort that comes too early.
    await until(lambda: engines.decode.held()["requests"] == 0, engines.decode.held)
    assert await engines.answer("Again", []) == engines.expected("Again", [])


async def test_a_reader_that_leaves_later_ends_the_request(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract_model, "pace", 0.005)
    long = Sampling(max_tokens=10_000)
    first = await engines.first("Hello", (), long)
    stream = engines.decode.generate(
        await engines.decode.reserve(0, long, b"", 60), first.token, first.next_position, long, first.handover
    )
    async with aclosing(stream):
        assert [first.token] == await anext(stream)
    await until(lambda: engines.decode.held()["requests"] == 0, engines.decode.held)


async def test_a_cancelled_prefill_is_aborted(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract_model, "pace", 0.05)
    rows = engines.embed([picture(1)])
    asking = asyncio.create_task(engines.first("Hello", rows))
    await until(lambda: engines.prefill.held()["requests"] == 1, engines.prefill.held)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert engines.prefill.held() == {"requests": 0}
    rows[0].slot.release()


async def test_a_transfer_that_fails_is_another_workers_chance(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract_model, "transfer_fails", RequestError("Error in kv cache transfer"))
    with pytest.raises(EngineError) as failed:
        await engines.answer("Hello", [])
    assert failed.value.retryable


async def test_an_engine_that_died_ends_its_process_once(
    engines: Engines, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many requests are in flight; and it is asked nothing any more."""
    monkeypatch.setattr(engines.decode, "_health", Health())  # The engine here lives on.
    monkeypatch.setattr(contract_model, "transfer_fails", CppExecutorError("gone"))
    answers = [engines.answer(text, []) for text in ("Hello", "Hello again")]
    for failed in await asyncio.gather(*answers, return_exceptions=True):
        assert isinstance(failed, EngineError)
        assert failed.code == "unavailable" and failed.retryable
    assert heard == ["TensorRT-LLM's engine ended unexpectedly"]
    monkeypatch.setattr(contract_model, "transfer_fails", None)
    with pytest.raises(EngineError) as refused:
        await engines.answer("Hello", [])
    assert refused.value.code == "unavailable"
    assert len(heard) == 1
    heard.clear()


async def test_a_kv_that_is_not_of_this_prompt_is_refused(engines: Engines) -> None:
    first = await engines.first("Hello", ())
    with pytest.raises(EngineError) as failed:
        await engines.rest(replace(first, token=first.token + 1))
    assert failed.value.code == "internal"


async def test_a_prompt_too_long_for_the_engine_is_refused_by_name(engines: Engines) -> None:
    with pytest.raises(EngineError) as refused:
        await engines.first("1 2 3 4 " * 400, ())
    assert refused.value.code == "invalid_request"
    engines.decode.check(models.CONTEXT - 1)
    with pytest.raises(EngineError, match="maximum context length is 512"):
        engines.decode.check(models.CONTEXT)


async def test_tokens_that_are_no_text_are_refused_with_pictures_only(engines: Engines) -> None:
    rows = engines.embed([picture(1)])
    half = engines.model.tokenizer.encode("你").ids[:1]
    ids = engines.prefill.expand(engines.ids("", 1) + half, [rows[0].tokens])
    with pytest.raises(EngineError, match="as text"):
        await engines.prefill.prefill(Prompt(ids, rows, SAMPLING), child(_target()), 60)
    await engines.prefill.prefill(Prompt(tuple(half), (), SAMPLING), child(_target()), 60)
    rows[0].slot.release()


async def test_the_handover_is_json_and_refuses_what_is_not_its_own(engines: Engines) -> None:
    handover = (await engines.first("Hello", ())).handover
    fields = msgspec.json.decode(handover)
    assert fields["first_gen_tokens"] == [engines.expected("Hello", [])[0]]
    assert isinstance(fields["opaque_state"], str)
    assert Handover.from_wire(handover).to_wire() == handover
    with pytest.raises(EngineError):
        Handover.from_wire(msgspec.json.encode({**fields, "multimodal_embedding_handles": []}))
