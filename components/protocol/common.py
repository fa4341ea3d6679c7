"""What several panels' messages share: where a picture is, how to sample, how long each hop took."""

from __future__ import annotations

from typing import Annotated

import msgspec

VERSION = 1
"""The protocol's version; a panel refuses a message of another one."""

Count = Annotated[int, msgspec.Meta(ge=0)]

CacheSalt = Annotated[str, msgspec.Meta(max_length=256)]
"""What is cached of a request, prefixes of its prompt and its pictures, serves requests of the same salt only."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything on the wire: immutable, keyword-only, unknown fields refused."""


class UrlImage(Message, tag="url"):
    """A picture that the encode worker fetches itself (``http`` or ``https``)."""

    url: str


class BufferImage(Message, tag="buffer"):
    """A picture whose encoded bytes (PNG, JPEG, …) stay in the frontend as a NIXL readable buffer.

    ``record`` is the ``RdmaMetadata`` as JSON; ``size`` is the byte count it must describe. ``sha256`` of the bytes, in
    hex, spares reading those that encode knows; what is read must be what it says.
    """

    record: bytes
    size: Annotated[int, msgspec.Meta(ge=1)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


ImageSource = UrlImage | BufferImage


class Sampling(Message):
    """How to choose the next token. ``temperature`` 0 is greedy; ``seed`` makes a sampled answer repeatable.

    ``drawn`` is how many tokens of the answer the prompt ends with already: an answer that a dead worker began is
    continued by another, with the draws that the first would have made.
    """

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    seed: int = 0
    stop_token_ids: tuple[Count, ...] = ()
    ignore_eos: bool = False
    drawn: Count = 0


class Hop(Message):
    """One step of a request's way, for people and for benchmarks.

    ``start`` is unix seconds on the clock of the panel that took the step, ``milliseconds`` its length,
    ``bytes`` what NIXL moved in it (0 where nothing moved), ``lane`` how it moved ("" where nothing moved).
    """

    stage: str
    name: str
    start: float
    milliseconds: float
    bytes: Count = 0
    lane: str = ""


class Usage(Message):
    """Token counts as the OpenAI API defines them; ``image_tokens`` are part of ``prompt_tokens``."""

    prompt_tokens: Count
    completion_tokens: Count
    image_tokens: Count = 0
