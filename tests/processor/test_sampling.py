from __future__ import annotations

import pytest

from components.messaging import CallError
from components.protocol import ChatRequest
from processor.sampling import DEFAULT_MAX_TOKENS, sampling


def ask(max_tokens: int | None = None, temperature: float = 1.0, top_p: float = 1.0) -> ChatRequest:
    return ChatRequest(model="m", turns=(), max_tokens=max_tokens, temperature=temperature, top_p=top_p)


def test_an_answer_for_which_the_context_has_no_room_is_refused() -> None:
    assert sampling(ask(max_tokens=12), (), prompt_tokens=500, max_context=512).max_tokens == 12
    with pytest.raises(CallError) as refused:
        sampling(ask(max_tokens=13), (), prompt_tokens=500, max_context=512)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    assert "you requested 513 tokens (500 in the messages, 13 in the completion)" in refused.value.message


def test_who_names_no_limit_gets_what_there_is_room_for() -> None:
    assert sampling(ask(), (), prompt_tokens=500, max_context=512).max_tokens == 12
    assert sampling(ask(), (), prompt_tokens=500, max_context=10_000).max_tokens == DEFAULT_MAX_TOKENS


@pytest.mark.parametrize(("asked", "given"), [(0.0, 0.0), (1e-300, 0.01), (0.01, 0.01), (2.0, 2.0)])
def test_temperatures_that_engines_can_divide_by(asked: float, given: float) -> None:
    assert sampling(ask(temperature=asked), (), prompt_tokens=1, max_context=512).temperature == given


@pytest.mark.parametrize(("asked", "given"), [(1e-300, 1e-6), (1e-9, 1e-6), (0.5, 0.5), (1.0, 1.0)])
def test_a_top_p_that_engines_can_represent(asked: float, given: float) -> None:
    assert sampling(ask(top_p=asked), (), prompt_tokens=1, max_context=512).top_p == given
