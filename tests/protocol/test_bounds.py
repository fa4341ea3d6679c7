"""What comes by NATS is checked where it is read: a number that no engine can take gets no further."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from components.protocol import ChatRequest, GenerateRequest, PrefillRequest, Sampling

SAMPLING = {"max_tokens": 1}
GENERATE = {"model": "m", "token_ids": [1], "images": [], "sampling": SAMPLING}
PREFILL = {**GENERATE, "reserve_subject": "s", "attempt": "a"}
CHAT = {"model": "m", "turns": []}


def read(type: Any, message: dict[str, Any]) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type)


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 0},
        {"max_tokens": 2**63},
        {"temperature": 1e-300},
        {"temperature": 0.009},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1e-9},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": 2**63},
        {"drawn": -1},
        {"drawn": 2**63},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [2**31]},
        {"stop_token_ids": [1] * 257},
        {"unknown": 1},
    ],
)
def test_sampling_that_no_engine_can_do(sampling: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        read(Sampling, SAMPLING | sampling)
    for type, message in ((GenerateRequest, GENERATE), (PrefillRequest, PREFILL)):
        with pytest.raises(msgspec.ValidationError, match=r"\$\.sampling"):
            read(type, message | {"sampling": SAMPLING | sampling})


@pytest.mark.parametrize("ids", [[-1], [2**31], [10**12], [2**64 - 1], [1, 2, -3], [1] * (2**20 + 1), [1.5], ["1"], 7])
def test_token_ids_that_no_vocabulary_has(ids: object) -> None:
    for type, message in ((GenerateRequest, GENERATE), (PrefillRequest, PREFILL)):
        with pytest.raises(msgspec.ValidationError):
            read(type, message | {"token_ids": ids})


@pytest.mark.parametrize(
    "chat",
    [
        {"max_tokens": 0},
        {"max_tokens": 2**63},
        {"temperature": float("nan")},
        {"temperature": 2.1},
        {"top_p": 0.0},
        {"seed": 2**63},
        {"stop": ["a"] * 5},
        {"stop": ["a"] * 500_000},
        {"stop": ["a" * 257]},
        {"stop": [""]},
        {"cache_salt": "a" * 257},
        {"turns": [{"role": "user", "parts": []}] * (2**16 + 1)},
        {"turns": [{"role": "user", "parts": [{"type": "text", "text": ""}] * (2**16 + 1)}]},
        {"turns": [{"role": "tool", "parts": []}]},
        {"turns": [{"role": "user", "parts": [{"type": "image", "image": {"type": "url", "url": "h" * 16_385}}]}]},
    ],
)
def test_chats_that_nobody_answers(chat: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        read(ChatRequest, CHAT | chat)


def test_what_is_just_within_the_bounds() -> None:
    extreme = {"max_tokens": 2**31, "temperature": 0.01, "top_p": 1e-6, "seed": -(2**63), "stop_token_ids": [1] * 256}
    assert read(GenerateRequest, GENERATE | {"sampling": extreme, "token_ids": [2**31 - 1]}).sampling.top_p == 1e-6
    chat = {"temperature": 1e-300, "top_p": 1e-300, "stop": ["a" * 256] * 4, "max_tokens": 2**31}
    assert read(ChatRequest, CHAT | chat).temperature == 1e-300
