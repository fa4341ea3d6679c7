"""The bytes of the request plane: what caller and callee say to each other about a call.

A call is a request, answered by a numbered stream of frames. The request goes to the callee's subject with headers;
everything else has none:

==========  =================  ========================================================================
kind        direction          body
==========  =================  ========================================================================
ITEM        callee → caller    call, number, one item
RESULT      callee → caller    call, number, the only item: the answer is complete
END         callee → caller    call, number: the answer is complete
ERROR       callee → caller    call, number, the error: the answer is complete
SENT        callee → caller    the callee's subject, and (call, frames sent) of every call it holds
UNKNOWN     callee → caller    calls that the caller believes in and the callee does not know
TAKEN       caller → callee    (call, frames received, frames allowed) of every call it waits for
REPAIR      caller → callee    (call, frames received): send again from there
CLOSE       caller → callee    calls that the caller has done with
==========  =================  ========================================================================

SENT and TAKEN are the heartbeats. Each states all its side knows, so whatever was lost on the way, the next one
mends it: a lost request, item, end or close alike.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

WINDOW = 64
"""Frames that a callee may send beyond what the caller's reader has taken."""

HEADROOM = 1024
"""Bytes kept free below NATS' payload limit, which counts a request's headers too."""


class Kind(IntEnum):
    ITEM = 1
    RESULT = 2
    END = 3
    ERROR = 4
    SENT = 5
    UNKNOWN = 6
    TAKEN = 7
    REPAIR = 8
    CLOSE = 9


ITEM, RESULT, END, ERROR = bytes(Kind)[:4]
LAST = frozenset((RESULT, END, ERROR))
"""Kinds that complete an answer. Plain integers: they are compared for every frame."""

LIST_LIMIT = 1 << 15
"""Most calls that one frame may name; both sides hold fewer with each other."""

_Number: TypeAlias = Annotated[int, Meta(ge=0, lt=2**32)]
_Limited = Meta(max_length=LIST_LIMIT)

_HEAD = struct.Struct(">BII")
_encoder = msgspec.msgpack.Encoder()
_sent = msgspec.msgpack.Decoder(tuple[str, Annotated[list[tuple[_Number, _Number]], _Limited]])
_taken: msgspec.msgpack.Decoder[list[tuple[int, int, int]]] = msgspec.msgpack.Decoder(
    Annotated[list[tuple[_Number, _Number, _Number]], _Limited]
)
_repair = msgspec.msgpack.Decoder(tuple[_Number, _Number])
_calls: msgspec.msgpack.Decoder[list[int]] = msgspec.msgpack.Decoder(Annotated[list[_Number], _Limited])


def pack(kind: int, call: int, number: int, body: bytes = b"") -> bytes:
    """A numbered frame."""
    return _HEAD.pack(kind, call, number) + body


def unpack(data: bytes) -> tuple[int, int, int, memoryview]:
    """Kind, call, number and body of a numbered frame. Raises ``struct.error`` if it is too short."""
    kind, call, number = _HEAD.unpack_from(data)
    return kind, call, number, memoryview(data)[_HEAD.size :]


def pack_sent(subject: str, calls: Sequence[tuple[int, int]]) -> bytes:
    return bytes((Kind.SENT,)) + _encoder.encode((subject, calls))


def pack_unknown(calls: Sequence[int]) -> bytes:
    return bytes((Kind.UNKNOWN,)) + _encoder.encode(calls)


def pack_taken(calls: Sequence[tuple[int, int, int]]) -> bytes:
    return bytes((Kind.TAKEN,)) + _encoder.encode(calls)


def pack_repair(call: int, received: int) -> bytes:
    return bytes((Kind.REPAIR,)) + _encoder.encode((call, received))


def pack_close(calls: Sequence[int]) -> bytes:
    return bytes((Kind.CLOSE,)) + _encoder.encode(calls)


# Each raises msgspec.DecodeError, a ValueError, on anything but what its pack_… wrote.


def unpack_sent(data: bytes) -> tuple[str, list[tuple[int, int]]]:
    return _sent.decode(memoryview(data)[1:])


def unpack_taken(data: bytes) -> list[tuple[int, int, int]]:
    return _taken.decode(memoryview(data)[1:])


def unpack_repair(data: bytes) -> tuple[int, int]:
    return _repair.decode(memoryview(data)[1:])


def unpack_calls(data: bytes) -> list[int]:
    """The body of UNKNOWN and CLOSE."""
    return _calls.decode(memoryview(data)[1:])
