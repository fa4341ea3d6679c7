"""decode → prefill, operation ``prefill``; and back, prefill → decode, operation ``reserve``.

Only prefill knows how long the prompt is once its pictures are expanded, so it asks the decode worker for KV memory
when it does: decode answers with a *writable* record and prefill writes the KV there, layer by layer.
"""

from __future__ import annotations

from components.protocol.common import CacheSalt, Count, Hop, Images, Message, Sampling, TokenId, TokenIds


class PrefillRequest(Message):
    """``reserve_subject`` is where the asking decode instance answers ``reserve``; ``attempt`` names this try."""

    model: str
    token_ids: TokenIds
    images: Images
    sampling: Sampling
    reserve_subject: str
    attempt: str
    cache_salt: CacheSalt = ""


class ReserveRequest(Message):
    """Asks for KV memory for ``prompt_tokens`` tokens (images expanded) of the request that ``attempt`` names.

    ``source`` is what the prefill engine tells the decode engine of itself and of the prompt; its form is the engines'.
    For the transformers engine it is empty.
    """

    attempt: str
    prompt_tokens: Count
    source: bytes = b""


class Reservation(Message):
    """``target`` tells the prefill engine where the KV goes; its form is the engine's.

    For the transformers engine it is the ``RdmaMetadata`` of a writable, as JSON.
    """

    target: bytes


class Prefilled(Message):
    """The KV of the whole prompt is in the decode worker's memory, and this is the first token.

    ``next_position`` is the rotary position of the first generated token (M-RoPE: less than the token count when the
    prompt holds pictures). ``handover`` is what else the decode engine must be told; its form is the engines', and most
    need none.
    """

    first_token: TokenId
    prompt_tokens: Count
    image_tokens: Count
    next_position: Count
    handover: bytes = b""
    hops: tuple[Hop, ...] = ()
