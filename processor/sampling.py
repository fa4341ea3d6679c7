"""What a client asked for, as the engines understand it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from components.messaging import CallError
from components.protocol import COLDEST, NARROWEST, ChatRequest, ErrorCode, Sampling, context_exceeded

DEFAULT_MAX_TOKENS = 1024
"""For clients that name no limit. KV memory is reserved for it, so "as much as fits" would let few requests in."""


def sampling(request: ChatRequest, stop_token_ids: Sequence[int], prompt_tokens: int, max_context: int) -> Sampling:
    """Raises ``CallError`` when the client wants more tokens than the context holds after the prompt.

    The prompt's pictures are not counted yet. An answer for which only they leave no room ends early, by ``length``.
    """
    room = max_context - prompt_tokens
    if request.max_tokens is not None and request.max_tokens > room:
        message = context_exceeded(max_context, prompt_tokens, request.max_tokens)
        raise CallError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, param="messages")
    return Sampling(
        max_tokens=request.max_tokens or min(DEFAULT_MAX_TOKENS, room),
        temperature=0.0 if request.temperature == 0 else max(request.temperature, COLDEST),
        top_p=max(request.top_p, NARROWEST),
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=request.ignore_eos,
    )
