"""The notifications two connectors exchange about one exposed buffer. Nothing here carries payload bytes.

Layout: 2 bytes magic, 1 byte kind, 16 bytes key of the exposure, 8 bytes number of the claim (one reader may use one
record twice), then a body that the kind defines. NIXL gives no order between a notification and a transfer, nor
between two transfers: no message here relies on any. Each is idempotent.

``CLAIM``   active → passive   "I begin": seal of the record, seconds I need, who I am, my connection metadata if first
``GRANT``   passive → active   the memory is yours for that long; what my clock says, by which my leases run
``REFUSE``  passive → active   and why; nothing may be moved, what was moved does not count
``DONE``    active → passive   every byte has landed
``END``     active → passive   I stopped, and will not touch the memory again: cancelled or failed
``REVOKE``  passive → active   I took the buffer back
``PING``    either way         is there anybody? An error on sending is the answer
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

_MAGIC = b"T\x02"
_HEAD = struct.Struct(">2sB16sQ")
_CLAIM = struct.Struct(">16sdH")
_GRANT = struct.Struct(">d")
KEY_BYTES = 16
SEAL_BYTES = 16
MAX_NAME = 512
MAX_METADATA = 1 << 20
MAX_SECONDS = 1e6
"""The longest lease, and the longest claim."""
MAX_CLOCK = 1e11
"""A monotonic clock begins with its machine: 3,000 years."""


class Kind(IntEnum):
    CLAIM = 1
    GRANT = 2
    REFUSE = 3
    DONE = 4
    END = 5
    REVOKE = 6
    PING = 7


class Reason(IntEnum):
    """Why a claim was refused, or an operation ended without completing."""

    EXPIRED = 1
    CONSUMED = 2
    ALTERED = 3
    NOT_FOR_YOU = 4
    UNKNOWN = 5
    CANCELLED = 6
    FAILED = 7
    DEADLINE = 8


class Message(NamedTuple):
    kind: Kind
    key: bytes
    claim: int = 0
    reason: Reason | None = None
    seal: bytes = b""
    seconds: float = 0.0
    metadata: bytes = b""
    name: str = ""
    clock: float = 0.0
    """The sender's ``time.monotonic()``"""


def encode(message: Message) -> bytes:
    head = _HEAD.pack(_MAGIC, message.kind, message.key, message.claim)
    if message.kind is Kind.CLAIM:
        name = message.name.encode()
        return head + _CLAIM.pack(message.seal, message.seconds, len(name)) + name + message.metadata
    if message.kind is Kind.GRANT:
        return head + _GRANT.pack(message.clock)
    if message.reason is not None:
        return head + bytes((message.reason,))
    return head


def decode(data: bytes) -> Message | None:
    """The message, or None for anything that is not exactly one: other users of NIXL notify as well."""
    if len(data) < _HEAD.size or data[:2] != _MAGIC:
        return None
    _, kind_byte, key, claim = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    try:
        kind = Kind(kind_byte)
        if kind is Kind.CLAIM:
            seal, seconds, length = _CLAIM.unpack_from(body)
            rest = body[_CLAIM.size :]
            if (
                not 0.0 < seconds < MAX_SECONDS
                or length > min(MAX_NAME, len(rest))
                or len(rest) - length > MAX_METADATA
            ):
                return None
            return Message(kind, key, claim, None, seal, seconds, rest[length:], rest[:length].decode())
        if kind is Kind.GRANT:
            (clock,) = _GRANT.unpack(body)
            return Message(kind, key, claim, clock=clock) if 0.0 <= clock < MAX_CLOCK else None
        if kind in (Kind.REFUSE, Kind.END, Kind.REVOKE):
            return Message(kind, key, claim, Reason(body[0])) if len(body) == 1 else None
        return Message(kind, key, claim) if not body else None
    except (ValueError, struct.error):
        return None
