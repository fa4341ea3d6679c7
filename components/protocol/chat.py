"""frontend → processor, operation ``chat``: a conversation in, text out."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from components.protocol.common import MANY, CacheSalt, Count, Hop, ImageSource, Message, Seed, TokenLimit, Usage

FinishReason = Literal["stop", "length"]

StopString = Annotated[str, Meta(min_length=1, max_length=256)]
"""Each piece of an answer is compared with all of them: their number and their length are bounded."""


class TextPart(Message, tag="text"):
    text: str


class ImagePart(Message, tag="image"):
    image: ImageSource


class Turn(Message):
    """One message of the conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: Literal["system", "user", "assistant"]
    parts: Annotated[tuple[TextPart | ImagePart, ...], Meta(max_length=MANY)]


class ChatRequest(Message):
    """``max_tokens`` None leaves the limit to the processor; ``seed`` None means a fresh one.

    ``stop`` are the strings that end the answer; they are not part of it.
    """

    model: str
    turns: Annotated[tuple[Turn, ...], Meta(max_length=MANY)]
    max_tokens: TokenLimit | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    seed: Seed | None = None
    stop: Annotated[tuple[StopString, ...], Meta(max_length=4)] = ()
    ignore_eos: bool = False
    cache_salt: CacheSalt = ""


class TextDelta(Message, tag="text"):
    """More of the answer; never empty, always whole characters.

    ``tokens`` is how many tokens it stands for: 0 for text that was held back (it could have become a stop string, or a
    whole character) and whose tokens came with an earlier piece.
    """

    text: str
    tokens: Count


class ChatDone(Message, tag="done"):
    """The last item of the stream."""

    finish_reason: FinishReason
    usage: Usage
    hops: tuple[Hop, ...] = ()


ChatItem = TextDelta | ChatDone
