"""The states of an operation, and the only moves between them.

The same six states serve both ends; ``docs/nixl_connect/states.svg`` is the picture. Terminal states are final: what a
late message or a late completion says can free memory, but never change an outcome that somebody has already seen.
"""

from __future__ import annotations

from enum import IntEnum


class OperationKind(IntEnum):
    """What the *active* side does. A record for READ is answered by ``begin_read``, one for WRITE by
    ``begin_write``."""

    UNSPECIFIED = 0
    READ = 1
    WRITE = 2


class OperationStatus(IntEnum):
    UNINITIALIZED = 0
    INITIALIZED = 1
    """Passive: exposed and unclaimed. Active: claimed at the peer, nothing granted yet."""
    IN_PROGRESS = 2
    """Passive: at least one peer holds a claim. Active: granted, or bytes are moving."""
    COMPLETE = 3
    CANCELLED = 4
    ERRORED = 5

    @property
    def is_terminal(self) -> bool:
        return self >= OperationStatus.COMPLETE


_S = OperationStatus
MOVES: dict[OperationStatus, frozenset[OperationStatus]] = {
    _S.UNINITIALIZED: frozenset({_S.INITIALIZED, _S.CANCELLED, _S.ERRORED}),
    # A readable for any number of readers is complete when its lease ends after at least one read,
    # and by then is often unclaimed again: hence INITIALIZED -> COMPLETE and IN_PROGRESS -> INITIALIZED.
    _S.INITIALIZED: frozenset({_S.IN_PROGRESS, _S.COMPLETE, _S.CANCELLED, _S.ERRORED}),
    _S.IN_PROGRESS: frozenset({_S.INITIALIZED, _S.COMPLETE, _S.CANCELLED, _S.ERRORED}),
    _S.COMPLETE: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.ERRORED: frozenset(),
}


def may_move(before: OperationStatus, after: OperationStatus) -> bool:
    return after in MOVES[before]
