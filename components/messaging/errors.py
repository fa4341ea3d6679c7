"""The one exception that crosses the wire."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MESSAGE_LIMIT = 2000
"""Longest error message sent, in characters: a traceback or a payload never travels as an error."""

WORD_LIMIT = 200
"""Longest code, stage or name of a field."""


class CallError(Exception):
    """Why a call failed, in terms that mean the same in every process.

    ``code`` is a word from a small fixed set, ``components.protocol.ErrorCode``; messaging itself raises
    ``invalid_request``, ``body_too_large``, ``overloaded``, ``unavailable``, ``peer_lost``, ``deadline_exceeded``,
    ``cancelled`` and ``internal``. ``stage`` is the role in which it happened, ``retryable`` whether another instance
    may succeed, ``param`` the field of the request that is at fault.
    """

    def __init__(
        self, code: str, message: str, *, stage: str = "", retryable: bool = False, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.stage = stage
        self.retryable = retryable
        self.param = param

    def __str__(self) -> str:
        where = f" [{self.stage}]" if self.stage else ""
        return f"{self.code}{where}: {self.message}"

    def __repr__(self) -> str:
        return (
            f"CallError({self.code!r}, {self.message!r}, stage={self.stage!r}, "
            f"retryable={self.retryable}, param={self.param!r})"
        )


class NobodyListens(CallError):
    """NATS had nobody to give the request to, and said so at once: no work was begun, no time lost."""


_Word = Annotated[str, Meta(max_length=WORD_LIMIT)]


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    code: _Word
    message: Annotated[str, Meta(max_length=MESSAGE_LIMIT)]
    stage: _Word
    retryable: bool
    param: _Word | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


def encode_error(error: CallError, stage: str) -> bytes:
    """The error as bytes; ``stage`` is filled in where the error names none."""
    return _encoder.encode(
        _Wire(
            code=error.code[:WORD_LIMIT],
            message=error.message[:MESSAGE_LIMIT],
            stage=(error.stage or stage)[:WORD_LIMIT],
            retryable=error.retryable,
            param=error.param[:WORD_LIMIT] if error.param is not None else None,
        )
    )


def decode_error(data: bytes | memoryview) -> CallError:
    """The error that ``encode_error`` wrote. Raises ``msgspec.DecodeError``, a ``ValueError``."""
    wire = _decoder.decode(data)
    return CallError(wire.code, wire.message, stage=wire.stage, retryable=wire.retryable, param=wire.param)
