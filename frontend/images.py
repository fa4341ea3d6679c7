"""Pictures that come inside a request: their bytes stay here, exposed for the encode worker to read by NIXL."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np
import numpy.typing as npt

from components.aio import to_the_end
from components.nixl_connect import Connector, Pool, PoolExhausted, Slot
from components.protocol import BufferImage, ErrorCode, ImageSource, UrlImage
from components.telemetry.trace import Trace
from frontend.errors import ApiError
from frontend.metrics import EXPOSED
from frontend.validate import ImageReference

# binascii holds the interpreter's lock while it works: a megabyte is two milliseconds in which nothing else runs.
_CHUNK = 2**18
_SHORT = 2**16


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

        URLs pass through. Raises ``ApiError``.
        """
        async with AsyncExitStack() as stack:
            sources: list[ImageSource] = []
            for reference in references:
                if reference.url[:5].lower() != "data:":
                    sources.append(UrlImage(url=reference.url))
                    continue
                with trace.step("expose image"):
                    sources.append(await self._expose(reference, seconds, stack))
            yield sources

    async def _expose(self, reference: ImageReference, seconds: float, stack: AsyncExitStack) -> BufferImage:
        url, start = reference.url, _payload_start(reference)
        size = _decoded_size(url, start)
        if len(url) == start:
            raise _refused(ErrorCode.IMAGE_UNDECODABLE, "The picture is empty (0 bytes).", reference)
        if size > min(self.max_bytes, self.pool.size):
            raise _refused(
                ErrorCode.IMAGE_TOO_LARGE, f"The picture has {size} bytes; {self.max_bytes} are allowed.", reference
            )
        slot = self._allocate(size)
        try:
            memory = slot.numpy(np.uint8, (size,))
            if size <= _SHORT:
                sha256 = _decode(url, start, memory)
            else:
                # To the end: while the thread writes, the memory must not become somebody else's.
                sha256 = await to_the_end(asyncio.to_thread(_decode, url, start, memory))
            # Any number of reads: an encode worker that fails is replaced by another, which reads again.
            readable = await self.connector.create_readable(slot.descriptor, lease=seconds, readers=None)
        except ValueError as error:
            raise _refused(
                ErrorCode.IMAGE_UNDECODABLE, "The data: URL of the picture is not valid base64.", reference
            ) from error
        finally:
            slot.release()  # The readable holds its own reference.
        await stack.enter_async_context(readable)
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


def _payload_start(reference: ImageReference) -> int:
    """``data:[type][;parameters];base64,payload`` → where the payload begins. The type is not read: bytes decide."""
    comma = reference.url.find(",", 0, 1024)
    if comma < 0 or not reference.url[:comma].lower().endswith(";base64"):
        raise _refused(
            ErrorCode.IMAGE_UNDECODABLE, "A data: URL must have the form data:image/png;base64,<base64>.", reference
        )
    return comma + 1


def _decoded_size(url: str, start: int) -> int:
    """What valid base64 of that length decodes to; for what is not valid, ``_decode`` finds out."""
    padding = len(url[-2:]) - len(url[-2:].rstrip("="))
    return max(1, (len(url) - start) // 4 * 3 - padding)


def _decode(url: str, start: int, memory: npt.NDArray[np.uint8]) -> str:
    """Fills the memory; the SHA-256 of the bytes, in hex. Raises ``ValueError`` for everything that is not the one
    canonical way to write these bytes."""
    digest = hashlib.sha256()
    written = 0
    for begin in range(start, len(url), _CHUNK):
        piece = binascii.a2b_base64(url[begin : begin + _CHUNK], strict_mode=True)
        # Padding in the middle would make a piece short.
        memory[written : written + len(piece)] = np.frombuffer(piece, np.uint8)
        digest.update(piece)
        written += len(piece)
    if written != len(memory):
        raise ValueError("padding in the middle")
    return digest.hexdigest()


def _refused(code: ErrorCode, message: str, reference: ImageReference) -> ApiError:
    return ApiError(code.status, code, message, param=reference.param)
