"""The base64 of pictures is set aside before anything reads the rest of a body.

Decoding JSON holds the interpreter's lock from the first byte to the last, some 4 ms a megabyte, and copies every
string. Nearly all of a long body is base64, which nothing here has to understand. So it stays where it is, the decoder
sees a short name in its place, and what is left is short enough to be decoded between two other things.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

_SHORT = 2**10
"""A payload of so few bytes may as well stay in the rest."""
_STEP = 2**20
"""What is searched in one go, some 0.8 ms: other threads take their turn in between."""
_PIECE = 2**18
"""What is decoded in one go; four characters of base64 are three bytes."""

_START = b'"data:'
_ESCAPE = re.compile(rb"\\(u00[0-7][0-9A-Fa-f]|.?)", re.DOTALL)
_ESCAPED = {b"/": b"/", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"f": b"\f"}
_SPACE = b" \n\r\t\f"


class TooManyStrings(Exception):
    """A body with more strings than a request can need."""


class TooLong(Exception):
    """What is left of a body without its pictures is too long."""


class Payload:
    """What follows the comma of a ``data:`` URL, as the client wrote it: ``body[start:end]``, inside a JSON string."""

    def __init__(self, body: bytes | bytearray, start: int, end: int) -> None:
        self._body = body
        self._start = start
        self._end = end

    def pieces(self) -> Iterator[bytes]:
        """The base64, piece by piece: JSON's escapes undone, and without the line breaks that encoders of e-mail make.

        Raises ``ValueError`` for an escape of something that is not base64.
        """
        start = self._start
        while start < self._end:
            end = min(start + _PIECE, self._end)
            piece = bytes(self._body[start:end])
            # Not in the middle of an escape, which has at most six characters.
            if end < self._end and (cut := piece.rfind(b"\\", len(piece) - 5)) > 0:
                piece = piece[:cut]
            start += len(piece)
            if b"\\" in piece:
                piece = _ESCAPE.sub(_unescaped, piece)
            yield piece.translate(None, _SPACE)

    def text(self) -> str:
        """As the text that a JSON decoder makes of it. Raises ``msgspec.DecodeError``, ``UnicodeDecodeError``."""
        return msgspec.json.decode(b'"' + self._body[self._start : self._end] + b'"', type=str)

    def __len__(self) -> int:
        """Bytes as the client wrote them."""
        return self._end - self._start

    def forget(self) -> None:
        """Let go of the body: the bytes have been copied to where they are needed."""
        self._body, self._start, self._end = b"", 0, 0


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1].startswith(b"u"):
        return bytes([int(match[1][1:], 16)])
    if match[1] not in _ESCAPED:
        raise ValueError("an escape that is not base64")
    return _ESCAPED[match[1]]


@dataclass(frozen=True)
class Lifted:
    """``rest`` is JSON of the same form as the body, with a name of ``payloads`` for each payload."""

    rest: bytes | bytearray
    payloads: dict[str, Payload]


def lift(body: bytes | bytearray, longest: int, strings: int) -> Lifted:
    """Sets aside the payloads of all ``data:`` URLs that are more than a little.

    Raises ``TooLong`` if the rest has more than ``longest`` bytes, ``TooManyStrings`` if it has clearly more than
    ``strings`` strings: both before anything has grown with the input.
    """
    rest, payloads, done = bytearray(), dict[str, Payload](), 0
    # Nobody can guess it, so no text can name a payload.
    nonce = secrets.token_hex(8)
    for count, (start, end) in enumerate(_data_urls(body)):
        # At every place that is found, not at the end: what is searched costs as well.
        if count > strings:
            raise TooManyStrings
        if len(rest) + start - done > longest:
            raise TooLong
        comma = body.find(b",", start, min(end, start + _SHORT))
        if comma < 0 or end - comma <= _SHORT:
            continue
        name = f"{nonce}-{len(payloads)}"
        payloads[name] = Payload(body, comma + 1, end)
        rest += body[done : comma + 1] + name.encode()
        done = end
    if len(rest) + len(body) - done > longest:
        raise TooLong
    rest = rest + body[done:] if done else bytearray(body)
    # Two quotes a string. One that ends in a backslash hides a quote of its own, so the count is at least half of it.
    if rest.count(b'"') - rest.count(b'\\"') > 2 * strings:
        raise TooManyStrings
    return Lifted(rest, payloads)


def _data_urls(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Where strings that begin with ``data:`` stand, without their quotes; one that cannot be set aside as an empty
    place. (Any other spelling stays in the rest.)

    In JSON a quote before a ``d`` begins a string or is escaped, so the strings in between need not be looked at. In
    what is not JSON whatever is found here does no harm: the rest will not be JSON either.
    """
    position = 0
    while position < len(body):
        quote = body.find(_START, position, position + _STEP)
        if quote < 0:
            position += _STEP - len(_START)
            continue
        position = quote + 1
        if _is_escaped(body, quote):
            yield position, position
            continue
        end = body.find(b'"', position)
        if end < 0:
            return
        # With a quote inside it is not base64, and need not be set aside.
        yield position, position if _is_escaped(body, end) else end
        position = end + 1


def _is_escaped(body: bytes | bytearray, quote: int) -> bool:
    """Is there an odd number of backslashes before it?"""
    first = quote
    while first:
        start = max(0, first - _SHORT)
        run = first - start - len(body[start:first].rstrip(b"\\"))
        first -= run
        if run < _SHORT:
            break
    return (quote - first) % 2 == 1
