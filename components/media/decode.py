"""Encoded bytes to an RGB picture, distrusting every one of them."""

from __future__ import annotations

import io
import struct
import zlib

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


def decode(data: bytes, limits: Limits) -> Image.Image:
    """The picture as RGB, upright, transparency on white; of an animation the first frame.

    Blocks for as long as decoding takes: call it in a thread. Raises ``MediaError``.
    """
    if not data:
        raise MediaError("image_undecodable", "The picture is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise MediaError("image_too_large", f"The picture has more than {limits.max_bytes} bytes.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(limits) from error
    except _BROKEN as error:
        raise MediaError("image_undecodable", _what_is_wrong(data)) from error
    # Opening reads the header only; nothing has been unpacked yet, and this keeps it so.
    if image.width * image.height > limits.max_pixels:
        raise _too_many_pixels(limits, image)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except _BROKEN as error:
        raise MediaError(
            "image_undecodable", f"The picture is a {image.format} file that is truncated or damaged."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _BROKEN:
        # Pixels are fine and only the note about them is not: show them as they lie.
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion clips at 255, which turns nearly everything white.
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
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
