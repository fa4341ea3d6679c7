"""What several panels' messages share: where a picture is, how to sample, how long each hop took."""

from __future__ import annotations

from typing import Annotated

import msgspec

VERSION = 1
"""The protocol's version; a panel refuses a message of another one."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""An engine checks it against its vocabulary too."""

TokenLimit = Annotated[int, msgspec.Meta(ge=1, le=2**31)]

Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

COLDEST = 0.01
"""The lowest temperature but 0: dividing scores by less overflows float16, and gives the same answer as this."""

NARROWEST = 1e-6
"""The lowest ``top_p``: the likeliest of a million tokens is likelier, so less gives the same answer as this."""

CacheSalt = Annotated[str, msgspec.Meta(max_length=256)]
"""What is cached of a request, prefixes of its prompt and its pictures, serves requests of the same salt only."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything on the wire: immutable, keyword-only, unknown fields refused."""


class UrlImage(Message, tag="url"):
    """A picture that the encode worker fetches itself (``http`` or ``https``)."""

    url: Annotated[str, msgspec.Meta(max_length=16_384)]


class BufferImage(Message, tag="buffer"):
    """A picture whose encoded bytes (PNG, JPEG, …) stay in the frontend as a NIXL readable buffer.

    ``record`` is the ``RdmaMetadata`` as JSON; ``size`` is the byte count it must describe. ``sha256`` of the bytes, in
    hex, spares reading those that encode knows; what is read must be what it says.
    """

    record: bytes
    size: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


ImageSource = UrlImage | BufferImage


class Sampling(Message):
    """How to choose the next token. ``temperature`` 0 is greedy, any other is at least ``COLDEST``; ``seed`` makes a
    sampled answer repeatable.

    ``drawn`` is how many tokens of the answer the prompt ends with already: an answer that a dead worker began is
    continued by another, with the draws that the first would have made.
    """

    max_tokens: TokenLimit
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(ge=NARROWEST, le=1.0)] = 1.0
    seed: Seed = 0
    stop_token_ids: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=256)] = ()
    ignore_eos: bool = False
    drawn: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0

    def __post_init__(self) -> None:
        if 0.0 < self.temperature < COLDEST:
            raise ValueError(f"Expected `temperature` 0 or at least {COLDEST}")


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
