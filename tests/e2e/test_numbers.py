"""Numbers in messages on NATS that no panel of ours sends: refused by name, or answered rightly; nobody is hurt."""

from __future__ import annotations

import pytest

from benchmarks.reference import Reference
from components.messaging import CallError, Context
from components.protocol import GenerateItem, GenerateRequest, Prefilled, PrefillRequest, Sampling
from tests.e2e.conftest import Inside
from tests.e2e.test_tokens import TOKENS, Case, greedy, turn

CASE = Case(1, 3)
WRONG = [(10**9,), (1, 2**31 - 1, 2)]


@pytest.mark.parametrize("ids", WRONG)
async def test_ids_beyond_the_vocabulary_are_refused_by_decode(inside: Inside, ids: tuple[int, ...]) -> None:
    (decode,) = inside.instances("decode").values()
    request = GenerateRequest(model="tiny-vl", token_ids=ids, images=(), sampling=greedy)
    with pytest.raises(CallError, match="no token id") as refused:
        async with inside.bus.stream(
            decode.subject, "generate", request, reply=GenerateItem, context=Context.new(10)
        ) as items:
            await anext(items)
    assert (refused.value.code, refused.value.retryable) == ("invalid_request", False)
    await inside.idle()


@pytest.mark.parametrize("ids", WRONG)
async def test_ids_beyond_the_vocabulary_are_refused_by_prefill(inside: Inside, ids: tuple[int, ...]) -> None:
    (prefill,) = inside.instances("prefill").values()
    request = PrefillRequest(
        model="tiny-vl", token_ids=ids, images=(), sampling=greedy, reserve_subject="nobody", attempt="none"
    )
    with pytest.raises(CallError, match="no token id") as refused:
        await inside.bus.call(prefill.subject, "prefill", request, reply=Prefilled, context=Context.new(10))
    assert (refused.value.code, refused.value.retryable) == ("invalid_request", False)
    await inside.idle()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=TOKENS, temperature=2.0, top_p=1e-6, seed=2**63 - 1, ignore_eos=True),
        Sampling(max_tokens=TOKENS, temperature=0.01, top_p=1e-6, seed=-(2**63), ignore_eos=True),
    ],
)
async def test_the_narrowest_sampling_chooses_the_best_token(
    inside: Inside, reference: Reference, sampling: Sampling
) -> None:
    messages, ids = turn(reference, CASE)
    (decode,) = inside.instances("decode").values()
    tokens, _ = await inside.generate(decode, ids, [], sampling, model="tiny-vl")
    assert tokens == reference.chat(messages, [], TOKENS).token_ids
    await inside.idle()
