"""Where a picture's bytes come from: a URL, or the frontend's memory."""

from __future__ import annotations

from components.engines.base import EngineError
from components.media import Fetcher, Limits, MediaError
from components.nixl_connect import Connector, Pool, PoolExhausted, RdmaMetadata
from components.protocol import BufferImage, ImageSource, UrlImage
from components.telemetry.trace import Trace


class ImageSources:
    """Fetches over HTTP or reads by NIXL, whichever the reference asks for."""

    def __init__(self, fetcher: Fetcher, connector: Connector, pool: Pool, limits: Limits, *, deadline: float) -> None:
        self._fetcher = fetcher
        self._connector = connector
        self._pool = pool
        self._limits = limits
        self._deadline = deadline

    async def load(self, image: ImageSource, trace: Trace) -> bytes:
        """The encoded picture. Raises MediaError, TransferError or EngineError."""
        match image:
            case UrlImage(url=url):
                with trace.step("fetch image"):
                    return await self._fetcher.fetch(url)
            case BufferImage(record=record, size=size):
                if size > self._limits.max_bytes:
                    raise MediaError("image_too_large", f"The picture has more than {self._limits.max_bytes} bytes.")
                with trace.step("read image") as step:
                    data, step.lane = await self._read(record, size)
                    step.bytes = size
                return data

    async def _read(self, record: bytes, size: int) -> tuple[bytes, str]:
        try:
            metadata = RdmaMetadata.model_validate_json(record)
            slot = await self._pool.reserve(size, deadline=self._deadline)
        except ValueError as error:
            raise EngineError("invalid_request", f"image record: {error}") from error
        except PoolExhausted as error:
            raise EngineError("overloaded", "no memory to read the picture into", retryable=True) from error
        try:
            async with await self._connector.begin_read(metadata, slot.descriptor, deadline=self._deadline) as read:
                await read.wait_for_completion()
                return slot.numpy("uint8", (size,)).tobytes(), read.lane
        finally:
            slot.release()
