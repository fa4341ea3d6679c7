"""What a client asked for, as the engines understand it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from components.protocol import ChatRequest, Sampling

DEFAULT_MAX_TOKENS = 1024
"""For clients that name no limit. KV memory is reserved for it, so "as much as fits" would let few requests in."""

# Dividing scores by less than this overflows float16, and gives the same answer as this.
_COLDEST = 0.01


def sampling(request: ChatRequest, stop_token_ids: Sequence[int], room: int) -> Sampling:
    """``room`` is how many tokens the context holds after the prompt, whose pictures are not counted yet."""
    return Sampling(
        max_tokens=min(request.max_tokens or DEFAULT_MAX_TOKENS, room),
        temperature=0.0 if request.temperature == 0 else max(request.temperature, _COLDEST),
        top_p=request.top_p,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=request.ignore_eos,
    )
