"""processor → decode, operation ``generate``: token ids in, token ids out."""

from __future__ import annotations

from components.protocol.chat import FinishReason
from components.protocol.common import Count, Hop, ImageSource, Message, Sampling, Usage


class GenerateRequest(Message):
    """``token_ids`` hold one image placeholder for each of ``images``, in the same order."""

    model: str
    token_ids: tuple[Count, ...]
    images: tuple[ImageSource, ...]
    sampling: Sampling


class Tokens(Message, tag="tokens"):
    """The next tokens of the answer, in order; several when the reader was slower than the engine."""

    ids: tuple[Count, ...]


class GenerateDone(Message, tag="done"):
    finish_reason: FinishReason
    usage: Usage
    hops: tuple[Hop, ...] = ()


GenerateItem = Tokens | GenerateDone
