"""processor → decode, operation ``generate``: token ids in, token ids out."""

from __future__ import annotations

from components.protocol.chat import FinishReason
from components.protocol.common import CacheSalt, Count, Hop, Images, Message, Sampling, TokenIds, Usage


class GenerateRequest(Message):
    """``token_ids`` hold one image placeholder for each of ``images``, in the same order."""

    model: str
    token_ids: TokenIds
    images: Images
    sampling: Sampling
    cache_salt: CacheSalt = ""


class Started(Message, tag="started"):
    """The prompt is prefilled: sent once, before the first ``Tokens``.

    The processor may end the stream itself (a stop string, a client that hangs up) and never see ``GenerateDone``;
    this is where it learns what the prompt cost. ``image_tokens`` are part of ``prompt_tokens``.
    """

    prompt_tokens: Count
    image_tokens: Count = 0
    hops: tuple[Hop, ...] = ()


class Tokens(Message, tag="tokens"):
    """The next tokens of the answer, in order; several when the reader was slower than the engine."""

    ids: TokenIds


class GenerateDone(Message, tag="done"):
    """The last item of the stream; ``hops`` are all of them, those of ``Started`` too."""

    finish_reason: FinishReason
    usage: Usage
    hops: tuple[Hop, ...] = ()


GenerateItem = Started | Tokens | GenerateDone
