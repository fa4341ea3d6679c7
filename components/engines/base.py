"""What a panel needs of an engine. Everything above this file is engine-free.

An engine does the arithmetic and owns the memory the arithmetic writes to: the encode engine fills a buffer that the
encode panel exposes, the prefill engine puts the prompt's KV where the decode engine said, the decode engine holds the
KV and turns it into tokens. How a KV gets from one to the other is the engines' own affair: ``source``, what prefill
tells decode beforehand, and ``target``, what decode answers, are opaque to the panels.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from components.nixl_connect import Slot
    from components.protocol import Sampling

Grid = tuple[int, int, int]
"""(t, h, w): patches of a picture in time, height and width, before the tower merges them."""


class EngineError(Exception):
    """An engine refuses a request or fails at it. ``code`` is a name from ``components.protocol.ErrorCode``."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


def check_token_ids(token_ids: Sequence[int], vocabulary: int) -> None:
    """Raises EngineError ``invalid_request`` for an id that the model has no row for. On a GPU it would end us."""
    for wrong in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= wrong < vocabulary:
            raise EngineError("invalid_request", f"{wrong} is no token id of this model: it has {vocabulary} tokens")


@dataclass(frozen=True)
class PreparedImage:
    """A picture as the vision tower takes it. ``pixels`` is the engine's own; the embedding has ``tokens`` rows."""

    pixels: Any
    grid: Grid
    tokens: int


@dataclass(frozen=True)
class EmbeddingFormat:
    """Rows of an embedding: ``width`` numbers of ``dtype`` (numpy's name, or ``bfloat16``), ``row_bytes`` bytes each.

    ``revision`` is a digest of the weights and the preprocessing: rows of another revision mean something else.
    ``device`` is where this engine makes or takes them (``cpu``, ``cuda:0``): slots are allocated there.
    """

    width: int
    dtype: str
    row_bytes: int
    revision: str
    device: str


class EncodeEngine(Protocol):
    """A vision tower. ``prepare`` may run on any thread; ``encode`` runs on one thread, the panel's choice."""

    format: EmbeddingFormat

    def prepare(self, image: Image) -> PreparedImage:
        """RGB picture → patches. Raises EngineError ``image_undecodable`` for a shape the model cannot take."""
        ...

    def encode(self, images: Sequence[PreparedImage], slots: Sequence[Slot]) -> None:
        """Run the tower once over all ``images`` and write image i's rows, (tokens, width), into ``slots[i]``."""
        ...

    def warm_up(self) -> None: ...


@dataclass(frozen=True)
class ImageInfo:
    """What is known of a picture before its embedding is here; ``content_hash`` names content and salt."""

    grid: Grid
    tokens: int
    content_hash: str


@dataclass(frozen=True)
class ImageRows(ImageInfo):
    """One picture's embedding in ``slot``: (tokens, width) of the engine's ``EmbeddingFormat``."""

    slot: Slot


@dataclass(frozen=True)
class Prompt:
    """``token_ids`` with the image placeholders expanded: one id a row of ``images``, in order.

    An engine that keeps prefixes may use them for prompts of the same ``cache_salt`` only.
    """

    token_ids: tuple[int, ...]
    images: tuple[ImageRows, ...]
    sampling: Sampling
    cache_salt: str = ""


@dataclass(frozen=True)
class FirstToken:
    """What prefill hands on: the first token and the rotary position it takes (0 if the decode engine finds it itself).

    ``compute_seconds`` is the forward pass, ``kv_bytes`` what was written to the decode worker, ``kv_seconds`` from the
    first layer's post to the last layer's landing, ``lane`` how the bytes went. ``handover`` is for an engine whose
    decode half must be told what is known only now; opaque to the panels.
    """

    token: int
    next_position: int
    compute_seconds: float
    kv_bytes: int
    kv_seconds: float
    lane: str
    handover: bytes = b""


class PrefillEngine(Protocol):
    """Computes a prompt and puts its KV where ``target`` says.

    ``target`` is awaited while the first layers compute: the decode worker reserves memory meanwhile. It is the
    caller's, who ends it. Token ids are below ``vocabulary``.
    """

    format: EmbeddingFormat
    image_token_id: int
    vocabulary: int
    max_context: int

    async def start(self) -> None: ...

    def expand(self, token_ids: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
        """Repeat the i-th image placeholder ``tokens[i]`` times; raises EngineError when the counts do not match."""
        ...

    def source(self, token_ids: Sequence[int], images: Sequence[ImageInfo], cache_salt: str) -> bytes:
        """What ``DecodeEngine.reserve`` must be told of this engine and a prompt; ``token_ids`` are not expanded."""
        ...

    async def prefill(self, prompt: Prompt, target: asyncio.Future[bytes], seconds: float) -> FirstToken:
        """Returns when the whole KV has landed. Cancelling it ends the write before the memory is used again.

        ``seconds`` are what the request has left. However many of them the prompt waits and computes, the target stays
        claimed; a transfer's own deadline is for the bytes alone.
        """
        ...

    def held(self) -> dict[str, int]:
        """What requests hold of the engine, by name; all zero when none runs."""
        ...

    async def close(self) -> None: ...


class Reservation(Protocol):
    """KV memory of one request on the decode worker; ``target`` is what the prefill engine must be told."""

    target: bytes

    async def watch(self) -> None:
        """Raises EngineError as soon as the engine gives up on the request; returns when, or if, it cannot any more.

        Before ``generate`` nobody else would hear of it: prefill goes on until its transfer runs out of time.
        """
        ...

    def release(self) -> None:
        """Give the memory back, as soon as nobody can write into it any more. Idempotent; returns at once."""
        ...


class DecodeEngine(Protocol):
    """Holds KV that arrives from outside and decodes all requests in one continuous batch.

    ``max_context`` is the most tokens of prompt and answer that the model, and the memory, can hold. Token ids are
    below ``vocabulary``.
    """

    vocabulary: int
    max_context: int

    async def start(self) -> None: ...

    def check(self, prompt_tokens: int) -> None:
        """Raises EngineError ``context_length_exceeded`` when no token of an answer has room after the prompt."""
        ...

    async def reserve(self, prompt_tokens: int, sampling: Sampling, source: bytes, seconds: float) -> Reservation:
        """Wait for KV memory, in order of asking, and expose it to the prefill engine that says ``source``.

        It stays exposed until it is released, for ``seconds`` at most: what the request has left. How long prefill
        takes before it comes to write is not known here.
        """
        ...

    def generate(
        self, reservation: Reservation, first_token: int, next_position: int, sampling: Sampling, handover: bytes
    ) -> AsyncGenerator[list[int], None]:
        """Wait until the KV has landed, then yield new tokens, ``first_token`` first.

        ``first_token``, ``next_position`` and ``handover`` are the prefill engine's ``FirstToken``.

        Ends after a stop token (not yielded) or ``sampling.max_tokens`` tokens. Closing the iterator takes the request
        out of the batch.
        """
        ...

    def held(self) -> dict[str, int]:
        """What requests hold of the engine, by name; all zero when none runs."""
        ...

    async def close(self) -> None: ...
