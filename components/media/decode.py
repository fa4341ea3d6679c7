"""Encoded bytes to an RGB picture, distrusting every one of them."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from components.media.errors import MediaError
from components.media.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_SUPPORTED = "PNG, JPEG, WebP, GIF and BMP"

# What Pillow's parsers raise on bytes that are not what they promise; found by fuzzing (tests/media/test_decode.py).
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
)

_PNG_HEADER = 25
"""Bytes of a PNG up to its bit depth, which is the last of them."""
_BAND_PIXELS = 500_000
"""At once through a conversion: 3 ms on a core, 10 MB."""

_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"
_MOST_SCANS = 100
"""Encoders make about ten. A scan can be a few bytes, and each is a pass over all pixels: hours, in a file of 20 MB."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_PARTS = 20_000
"""Segments, or chunks, that a file may have before its pixels end. Pillow reads each in Python: five times as many take
a second in which a thread is lost. Files have hundreds, large PNGs some thousands."""
_MOST_FILL = 2**16
"""Bytes between two segments of a JPEG, which Pillow steps over one by one."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Opened:
    """A picture of which only the header has been read: ``pixels`` tells what unfolding it will cost."""

    pixels: int
    _file: Image.Image
    _header: bytes

    def unfold(self) -> Image.Image:
        """The picture as ``decode`` gives it. Blocks. Raises ``MediaError``.

        Takes 4 bytes a pixel for what the file holds, 4 for the picture, and what the codec needs by itself.
        """
        image = self._file
        try:
            image.load()
            turn = _turn(image)
            rgb = _to_rgb(image, _transparent_colour(image, self._header))
        except _BROKEN as error:
            raise MediaError(
                "image_undecodable", f"The picture is a {image.format} file that is truncated or damaged."
            ) from error
        return rgb if turn is None else rgb.transpose(turn)


def decode(data: bytes, limits: Limits) -> Image.Image:
    """The picture as RGB, upright, transparency on white; of an animation the first frame.

    Blocks for as long as decoding takes: call it in a thread. Raises ``MediaError``.
    """
    return open_picture(data, limits).unfold()


def open_picture(data: bytes, limits: Limits) -> Opened:
    """Read the header and hold the picture against the limits; nothing is unpacked yet. Raises ``MediaError``."""
    if not data:
        raise MediaError("image_undecodable", "The picture is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise MediaError("image_too_large", f"The picture has more than {limits.max_bytes} bytes.")
    if (data.startswith(_JPEG) and _is_endless_jpeg(data)) or (data.startswith(_PNG) and _is_endless_png(data)):
        raise MediaError("image_undecodable", "The picture's file has a header without end.")
    if data.startswith(_JPEG) and data.count(_SCAN) > _MOST_SCANS:
        raise MediaError("image_undecodable", f"The picture is a JPEG file of more than {_MOST_SCANS} scans.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(limits) from error
    except _BROKEN as error:
        raise MediaError("image_undecodable", _what_is_wrong(data)) from error
    if image.width * image.height > limits.max_pixels:
        raise _too_many_pixels(limits, image)
    return Opened(image.width * image.height, image, data[:_PNG_HEADER])


def _is_endless_jpeg(data: bytes) -> bool:
    """Would finding the first scan take Pillow too long? What is broken is for Pillow to say."""
    at = len(_JPEG)
    for _ in range(_MOST_PARTS):
        mark = data.find(b"\xff", at, at + _MOST_FILL)
        if mark < 0:
            return len(data) - at >= _MOST_FILL
        fill = data[mark : mark + 8]
        if not fill.strip(b"\xff"):
            fill = data[mark : mark + _MOST_FILL]
        kind = mark + len(fill) - len(fill.lstrip(b"\xff"))
        if kind == mark + _MOST_FILL:
            return True
        if data[kind - 1 : kind + 1] == _SCAN:
            return False
        alone = data[kind : kind + 1] in (b"", b"\x00", b"\x01") or 0xD0 <= data[kind] <= 0xD9
        at = kind + 1 if alone else kind + 1 + max(2, int.from_bytes(data[kind + 1 : kind + 3], "big"))
        if at >= len(data):
            return False
    return True


def _is_endless_png(data: bytes) -> bool:
    at = len(_PNG)
    for _ in range(_MOST_PARTS):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at >= len(data):
            return False
    return True


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _BROKEN:
        # Pixels are fine and only the note about them is not: show them as they lie.
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _transparent_colour(image: Image.Image, header: bytes) -> int | tuple[int, ...] | None:
    """The one colour of a PNG without alpha that is transparent, in terms of the pixels that Pillow gives.

    A PNG names it in samples of its own depth. Pillow scales pixels of 2 and 4 bits to 8 and cuts 16 of colour to 8,
    but leaves the name as it was.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB") or key is None:
        return key if image.mode.startswith("I") else None
    depth = header[_PNG_HEADER - 1]
    if depth == 16:
        return tuple(sample >> 8 for sample in key)
    return key * 255 // (2**depth - 1) if image.mode == "L" else None


def _to_rgb(image: Image.Image, transparent: int | tuple[int, ...] | None) -> Image.Image:
    """In bands: what a conversion needs on the way is small, and so is the time for which Pillow's compositing, which
    does not release the interpreter, keeps every other thread from running.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if transparent is not None:
        image.info["transparency"] = transparent
    rgb = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_band_to_rgb(band), (0, top))
    return rgb


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion clips at 255, which turns nearly everything white.
        samples = np.asarray(image)
        grey = np.clip(samples >> 8, 0, 255).astype(np.uint8)
        grey[samples == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _too_many_pixels(limits: Limits, image: Image.Image | None = None) -> MediaError:
    size = f" is {image.width} x {image.height} pixels: that" if image is not None else ""
    return MediaError("image_too_large", f"The picture{size} is more than the {limits.max_pixels} pixels allowed.")


def _what_is_wrong(data: bytes) -> str:
    head = data[:1024].lstrip().lower()
    if b"<svg" in head:
        return f"SVG pictures are not supported; send one of {_SUPPORTED}."
    if head.startswith((b"<!doctype html", b"<html")):
        return f"The bytes are a web page, not a picture; send one of {_SUPPORTED}."
    return f"The bytes are not a readable picture; supported are {_SUPPORTED}."
