"""frontend → processor, operation ``chat``: a conversation in, text out."""

from __future__ import annotations

from typing import Literal

from components.protocol.common import CacheSalt, Hop, ImageSource, Message, Usage

FinishReason = Literal["stop", "length"]


class TextPart(Message, tag="text"):
    text: str


class ImagePart(Message, tag="image"):
    image: ImageSource


class Turn(Message):
    """One message of the conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[TextPart | ImagePart, ...]


class ChatRequest(Message):
    """``max_tokens`` None means as many as the context holds; ``seed`` None means a fresh one.

    ``stop`` are the strings that end the answer; they are not part of it.
    """

    model: str
    turns: tuple[Turn, ...]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    cache_salt: CacheSalt = ""


class TextDelta(Message, tag="text"):
    """More of the answer; never empty, always whole characters.

    ``tokens`` is how many tokens it stands for: 0 for text that was held back (it could have become a stop string, or a
    whole character) and whose tokens came with an earlier piece.
    """

    text: str
    tokens: int


class ChatDone(Message, tag="done"):
    """The last item of the stream."""

    finish_reason: FinishReason
    usage: Usage
    hops: tuple[Hop, ...] = ()


ChatItem = TextDelta | ChatDone
