from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from components.media import Limits, MediaError, content_hash, decode
from tests.media.pictures import bomb, encoded, picture, png

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
    data = png(16, 2, [65_535, 32_768, 0] * 2)
    assert decode(data, LIMITS).getpixel((1, 0)) == (255, 128, 0)


GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6


@pytest.mark.parametrize(
    ("data", "second"),
    [
        (png(1, GREY, [0, 1], [0]), 255),
        (png(1, GREY, [1, 0], [1]), 0),
        (png(2, GREY, [1, 2], [1]), 170),
        (png(4, GREY, [5, 10], [5]), 170),
        (png(8, GREY, [5, 10], [5]), 10),
        (png(16, GREY, [0x1234, 0x5678], [0x1234]), 0x56),
        (png(16, GREY, [0, 0x5678], [0]), 0x56),
        (png(16, GREY, [0x1234, 0x1235], [0x1234]), 0x12),
        (png(8, COLOUR, [1, 2, 3, 9, 9, 9], [1, 2, 3]), 9),
        (png(16, COLOUR, [0x1234, 0x5678, 0x9ABC] + [0x0909] * 3, [0x1234, 0x5678, 0x9ABC]), 9),
        (png(8, GREY_ALPHA, [7, 0, 9, 255]), 9),
        (png(16, GREY_ALPHA, [0x1234, 0, 0x0909, 0xFFFF]), 9),
        (png(8, COLOUR_ALPHA, [7, 7, 7, 0, 9, 9, 9, 255]), 9),
        (png(16, COLOUR_ALPHA, [7, 7, 7, 0] + [0x0909] * 3 + [0xFFFF]), 9),
    ],
)
def test_what_is_transparent_is_white_in_every_depth(data: bytes, second: int) -> None:
    """The first pixel is transparent, the second is not."""
    image = decode(data, LIMITS)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (second,) * 3]


def test_bands_are_put_together_again() -> None:
    """Larger than what is converted at once."""
    grey = np.random.default_rng(2).integers(0, 256, (1100, 1000), dtype=np.uint8)
    image = Image.fromarray(grey).convert("LA")
    assert np.array_equal(np.asarray(decode(encoded(image, compress_level=1), LIMITS))[:, :, 0], grey)


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    """Each of a few bytes, and each a pass over all pixels."""
    data = encoded(picture(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    decode(data, LIMITS)
    assert "scans" in refused(data[:-2] + data[last:-2] * 1000 + data[-2:]).message


PEAK = """
import resource, sys
from components.media import Limits, decode
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(data, Limits())
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_decoding_takes_eight_bytes_a_pixel(mode: str) -> None:
    side = 3000
    image = Image.new("I;16" if mode == "I;16" else "L", (side, side))
    data = encoded(image if mode == "I;16" else image.convert(mode))
    ran = subprocess.run([sys.executable, "-c", PEAK], input=data, stdout=subprocess.PIPE, check=True)
    assert int(ran.stdout) < 8 * side * side + 25_000_000


def longest_hold(work: Callable[[], object]) -> float:
    """Seconds for which no other thread ran while ``work`` did."""
    ended, ready = threading.Event(), threading.Event()
    longest = 0.0

    def watch() -> None:
        nonlocal longest
        before = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.001)
            before, now = time.perf_counter(), before
            longest = max(longest, before - now)
            ready.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    ready.wait()
    work()
    ended.set()
    watcher.join()
    return longest


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
def test_no_conversion_holds_the_interpreter(mode: str) -> None:
    side = 4000
    grey = Image.linear_gradient("L").resize((side, side))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    data = encoded(image, compress_level=1, transparency=b"\x10" * 256 if mode == "P" else None)
    # What else runs on this machine only adds: the shortest of three tells.
    assert min(longest_hold(lambda: decode(data, LIMITS)) for _ in range(3)) < 0.05


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


def _seeds() -> list[bytes]:
    frames = [picture(20, 20, colour) for colour in ("red", "green", "blue")]
    notes = Image.Exif()
    notes[0x0112], notes[0x8769] = 6, {1: 2}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noted = {"exif": notes, "icc_profile": profile}
    still = picture(24, 24)
    return [
        *(encoded(still, format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")),
        *(encoded(frames[0], format, save_all=True, append_images=frames[1:]) for format in ("GIF", "WEBP", "PNG")),
        encoded(still.quantize(4)),
        encoded(still, "PNG", **noted),
        encoded(still, "JPEG", progressive=True, **noted),
        encoded(still, "WEBP", lossless=True, **noted),
        encoded(still.quantize(4), "GIF", transparency=0, comment=b"x" * 300),
        encoded(still.convert("CMYK"), "JPEG"),
        encoded(still.convert("RGBA"), "WEBP"),
        *(encoded(still.convert(mode), "BMP") for mode in ("RGBA", "1", "P")),
        encoded(still.convert("LA")),
        png(16, GREY, [1, 2], [1]),
        png(2, GREY, [1, 2], [1]),
        png(16, COLOUR, [1, 2, 3, 4, 5, 6], [1, 2, 3]),
    ]


def _damaged(seeds: list[bytes], random: Random) -> bytes:
    data = bytearray(random.choice(seeds))
    kind, start = random.random(), random.randrange(len(data))
    if kind < 0.15:
        del data[start:]
    elif kind < 0.25:
        data[start:start] = data[start : start + random.randrange(200)]
    elif kind < 0.32:
        data[start:] = random.choice(seeds)[start:]
    for _ in range(random.randint(1, 8) if data else 0):
        place = min(random.randrange(len(data)) for _ in range(2))  # headers are worth more
        data[place] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
    return _sums_mended(bytes(data)) if random.random() < 0.8 else bytes(data)


def _sums_mended(data: bytes) -> bytes:
    """Of a PNG: nothing gets past a wrong one."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    mended, place = data[:8], 8
    while (end := place + 8 + int.from_bytes(data[place : place + 4], "big")) + 4 <= len(data):
        mended += data[place:end] + struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return mended + data[place:]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("seed", range(4))
def test_damage_is_refused_or_survived_and_nothing_else(seed: int) -> None:
    seeds, random = _seeds(), Random(seed)
    limits = Limits(max_pixels=1_000_000)
    outcomes = Counter[str]()
    for _ in range(2500):
        data = _damaged(seeds, random)
        try:
            assert decode(data, limits).mode == "RGB"
            outcomes["decoded"] += 1
        except MediaError as error:
            outcomes[error.code] += 1
    assert set(outcomes) == {"decoded", "image_undecodable", "image_too_large"}


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


def _jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "JPEG", progressive=True)
    return out.getvalue()


def _png(chunks: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    png, body = out.getvalue(), b"tEXta\0b"
    chunk = struct.pack(">I", 3) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk * chunks + png[33:]


@pytest.mark.parametrize(
    "data",
    [
        _jpeg()[:2] + b"\xff\xe1\x00\x02" * 4_000_000 + _jpeg()[2:],
        _jpeg()[:2] + b"\xff" * 15_000_000 + _jpeg()[2:],
        _jpeg()[:2] + b"\xff\x00" * 7_000_000 + _jpeg()[2:],
        _jpeg()[:2] + b"\x00" * 15_000_000 + _jpeg()[2:],
        _png(700_000),
    ],
    ids=["empty segments", "fill", "escaped fill", "junk", "chunks"],
)
def test_a_header_without_end_is_refused_before_it_is_read(data: bytes) -> None:
    """Pillow reads headers in Python: these took 3 to 20 s, in a thread that nobody can cancel."""
    with pytest.raises(MediaError, match="header without end"):
        decode(data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [_jpeg()[:2] + b"\xff\xe1\x00\x02" * 1000 + b"\xff" * 1000 + _jpeg()[2:], _png(1000)],
    ids=["segments and fill", "chunks"],
)
def test_a_long_header_is_read(data: bytes) -> None:
    assert decode(data, LIMITS).size[0] in (8, 64)
