"""Pictures that come inside a request: their bytes stay here, exposed for the encode worker to read by NIXL."""

from __future__ import annotations

import asyncio
import binascii
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from components.aio import to_the_end
from components.nixl_connect import Connector, Pool, PoolExhausted, Slot
from components.protocol import BufferImage, ErrorCode, ImageSource, UrlImage
from components.telemetry.trace import Trace
from frontend.errors import ApiError
from frontend.metrics import EXPOSED
from frontend.payloads import Payload
from frontend.validate import ImageReference

# Looking through this many bytes takes less than changing to another thread.
_SHORT = 2**16
# data:[type][;parameters];base64, and the type is not read: bytes decide.
_HEAD = re.compile(r"data:.*;\s*base64\s*,", re.IGNORECASE | re.DOTALL)
_LONGEST_HEAD = 1024

T = TypeVar("T")


@dataclass(frozen=True)
class ImageShelf:
    """Host memory, registered once, in which pictures wait. ``max_bytes`` is the longest that encode would take."""

    connector: Connector
    pool: Pool
    max_bytes: int

    @asynccontextmanager
    async def expose(
        self, references: Sequence[ImageReference], seconds: float, trace: Trace
    ) -> AsyncIterator[list[ImageSource]]:
        """Inside the block, and for at most ``seconds``, whoever has the records can read the pictures.

        URLs pass through; payloads are forgotten once they are exposed. Raises ``ApiError``.
        """
        async with AsyncExitStack() as stack:
            sources: list[ImageSource] = []
            for reference in references:
                if reference.payload is None:
                    sources.append(UrlImage(url=reference.url))
                    continue
                with trace.step("expose image"):
                    sources.append(await self._expose(reference, reference.payload, seconds, stack))
            yield sources

    async def _expose(
        self, reference: ImageReference, payload: Payload, seconds: float, stack: AsyncExitStack
    ) -> BufferImage:
        if len(reference.url) > _LONGEST_HEAD or not _HEAD.fullmatch(reference.url):
            raise _refused(
                ErrorCode.IMAGE_UNDECODABLE, "A data: URL must have the form data:image/png;base64,<base64>.", reference
            )
        try:
            size = await _beside(payload, _decoded_size)
            if not size:
                raise _refused(ErrorCode.IMAGE_UNDECODABLE, "The picture is empty (0 bytes).", reference)
            if size > min(self.max_bytes, self.pool.size):
                raise _refused(
                    ErrorCode.IMAGE_TOO_LARGE, f"The picture has {size} bytes; {self.max_bytes} are allowed.", reference
                )
            slot = self._allocate(size)
            try:
                sha256 = await _beside(payload, functools.partial(_decode, memory=slot.numpy(np.uint8, (size,))))
                # Any number of reads: an encode worker that fails is replaced by another, which reads again.
                readable = await self.connector.create_readable(slot.descriptor, lease=seconds, readers=None)
            finally:
                slot.release()  # The readable holds its own reference.
        except ValueError as error:
            raise _refused(
                ErrorCode.IMAGE_UNDECODABLE, "The data: URL of the picture is not valid base64.", reference
            ) from error
        await stack.enter_async_context(readable)
        payload.forget()
        EXPOSED.inc(size)
        return BufferImage(record=readable.metadata().model_dump_json().encode(), size=size, sha256=sha256)

    def _allocate(self, size: int) -> Slot:
        try:
            return self.pool.allocate(size)
        except PoolExhausted as error:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                ErrorCode.OVERLOADED,
                "Too many pictures are being looked at right now; try again in a moment.",
            ) from error


async def _beside(payload: Payload, look: Callable[[Payload], T]) -> T:
    """``look(payload)``, beside the event loop if it takes long."""
    if len(payload) <= _SHORT:
        return look(payload)
    # To the end: while the thread writes to memory, that must not become somebody else's.
    return await to_the_end(asyncio.to_thread(look, payload))


def _decoded_size(payload: Payload) -> int:
    """What valid base64 of that length decodes to; for what is not valid, ``_decode`` finds out."""
    length, end = 0, b""
    for piece in payload.pieces():
        length += len(piece)
        end = (end + piece)[-2:]
    return max(1, length // 4 * 3 - end.count(b"=")) if length else 0


def _decode(payload: Payload, memory: npt.NDArray[np.uint8]) -> str:
    """Fills the memory; the SHA-256 of the bytes, in hex. Raises ``ValueError`` for everything that is not the one
    canonical way to write these bytes, white space aside."""
    digest = hashlib.sha256()
    written = 0
    held = b""
    for piece in payload.pieces():
        held += piece
        whole = len(held) // 4 * 4
        data = binascii.a2b_base64(held[:whole], strict_mode=True)
        held = held[whole:]
        # Padding in the middle would make a piece short.
        memory[written : written + len(data)] = np.frombuffer(data, np.uint8)
        digest.update(data)
        written += len(data)
    if held or written != len(memory):
        raise ValueError("padding in the middle, or missing")
    return digest.hexdigest()


def _refused(code: ErrorCode, message: str, reference: ImageReference) -> ApiError:
    return ApiError(code.status, code, message, param=reference.param)
