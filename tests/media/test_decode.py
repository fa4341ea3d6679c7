from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.media import Limits, MediaError, content_hash, decode
from tests.media.pictures import _chunk, bomb, encoded, picture

LIMITS = Limits()
RED, WHITE = (255, 0, 0), (255, 255, 255)


def refused(data: bytes, limits: Limits = LIMITS) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode(data, limits)
    return caught.value


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_supported_format(format: str) -> None:
    image = decode(encoded(picture(), format), LIMITS)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 3  # JPEG and WebP round


@pytest.mark.parametrize("format", ["TIFF", "ICO", "PPM", "TGA"])
def test_formats_outside_the_list_are_refused(format: str) -> None:
    error = refused(encoded(picture(16, 16), format))
    assert error.code == "image_undecodable"
    assert "PNG, JPEG, WebP, GIF and BMP" in error.message


def test_nothing() -> None:
    error = refused(b"")
    assert (error.code, error.message) == ("image_undecodable", "The picture is empty (0 bytes).")


def test_text_svg_and_web_pages_are_named() -> None:
    assert "not a readable picture" in refused(b"hello, I am a text file\n").message
    assert "SVG" in refused(b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>').message
    assert "web page" in refused(b"\n<!DOCTYPE html><html></html>").message


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    error = refused(data[: len(data) * 2 // 3])
    assert error.code == "image_undecodable"


def test_decompression_bomb_is_refused_before_it_unfolds() -> None:
    data = bomb()
    assert len(data) < 130_000
    tracemalloc.start()
    error = refused(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "image_too_large"
    assert peak < 10_000_000


def test_pixel_limit_is_ours_and_not_pillows() -> None:
    error = refused(encoded(picture(101, 100)), Limits(max_pixels=10_000))
    assert error.code == "image_too_large"
    assert "101 x 100" in error.message
    decode(encoded(picture(100, 100)), Limits(max_pixels=10_000))


def test_byte_limit() -> None:
    assert refused(encoded(picture()), Limits(max_bytes=10)).code == "image_too_large"


def test_animation_gives_its_first_frame() -> None:
    frames = [picture(colour=colour) for colour in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
        assert np.abs(np.asarray(decode(data, LIMITS)).astype(int) - RED).max() <= 3, format


def test_cmyk() -> None:
    image = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), LIMITS)
    assert image.mode == "RGB"
    red, green, blue = np.asarray(image)[4, 4]
    assert red > 200 and green < 60 and blue < 60


def test_sixteen_bits_keep_their_brightness() -> None:
    ramp = np.linspace(0, 65_535, 256, dtype=np.uint16)[None, :].repeat(4, axis=0)
    image = np.asarray(decode(encoded(Image.fromarray(ramp)), LIMITS))
    assert image.shape == (4, 256, 3)
    assert np.abs(image[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_sixteen_bit_colour() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 65_535, 32_768, 0) * 4 for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)
    assert decode(data, LIMITS).getpixel((1, 1)) == (255, 128, 0)


def test_palette_with_and_without_transparency() -> None:
    palette = picture().quantize(4)
    assert decode(encoded(palette), LIMITS).getpixel((0, 0)) == RED
    assert decode(encoded(palette, transparency=palette.getpixel((0, 0))), LIMITS).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA"])
def test_other_modes(mode: str) -> None:
    assert decode(encoded(picture(colour="white").convert(mode)), LIMITS).getpixel((0, 0)) == WHITE


def test_transparency_lies_on_white() -> None:
    assert decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), LIMITS).getpixel((0, 0)) == WHITE
    half = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128))), LIMITS).getpixel((0, 0))
    assert half == (255, 127, 127)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(stored, "PNG", exif=exif), LIMITS)
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_damaged_exif_does_not_matter() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, LIMITS).size == (8, 6)


SEEDS = [encoded(picture(24, 24), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")] + [
    encoded(picture(24, 24).quantize(4), "PNG"),
    encoded(picture(24, 24), "JPEG", progressive=True, exif=Image.Exif()),
]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_is_refused_or_survived_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(damaged), Limits(max_pixels=1_000_000))
    except MediaError as error:
        assert error.code in ("image_undecodable", "image_too_large")
    else:
        assert image.mode == "RGB"


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert refused(data).code == "image_undecodable"


def test_a_salt_gives_a_picture_another_name() -> None:
    names = [content_hash(data, salt) for data in (b"a", b"b") for salt in ("", "ann", "bob")]
    assert len(set(names)) == len(names)
    assert all(len(bytes.fromhex(name)) == 32 for name in names)
    assert content_hash(b"a", "ann") == content_hash(b"a", "ann")
    assert content_hash(b"a", "") == content_hash(b"a")


def test_content_hash_is_sha256() -> None:
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
