"""Pictures, good and bad, made where they are needed."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(width: int = 8, height: int = 6, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of about 100 KB (one bit a pixel, all the same) that unfolds to 900 million pixels."""
    rows = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    packed = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    return _png(width, height, 1, 0, (b"IDAT", packed))


def png(depth: int, colour_type: int, samples: list[int], transparent: list[int] | None = None) -> bytes:
    """A PNG of two pixels side by side from its ``samples`` of ``depth`` bits; ``transparent`` is one pixel of them."""
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    chunks = [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))] if transparent is not None else []
    return _png(2, 1, depth, colour_type, *chunks, (b"IDAT", zlib.compress(b"\0" + row)))


def _png(width: int, height: int, depth: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, body) for kind, body in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
