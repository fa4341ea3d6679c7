"""What stands for a model: tokens that hang on all that a real model's tokens hang on.

``pace`` is seconds a step; tests hold KV transfers up or let them fail; ``salts`` is what requests were cached under.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

pace = 0.0
transfers_held = False
transfer_fails: RuntimeError | None = None
salts: list[str | None] = []


def kv(token_ids: Sequence[int], rows: Sequence[torch.Tensor], positions: torch.Tensor | None) -> bytes:
    """The KV of a prompt, as a digest: of its ids, what stands at its pictures' places, and where each token is."""
    digest = hashlib.sha256(repr(list(token_ids)).encode())
    for part in rows:
        digest.update(part.float().numpy().tobytes())
    if positions is not None:
        digest.update(repr(positions.tolist()).encode())
    return digest.digest()


def token(kv: bytes, delta: int, index: int) -> int:
    """The answer's token number ``index``, a letter; from the second on it hangs on the rotary position too."""
    lag = delta if index else 0
    return 65 + hashlib.sha256(kv + repr((lag, index)).encode()).digest()[0] % 26


def embedding(pixels: bytes, tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """(tokens, width) that no other picture has."""
    seed = int.from_bytes(hashlib.sha256(pixels).digest()[:8], "big")
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed >> 1)).to(dtype)
