"""Every way a transfer can fail, as a type.

``code`` is stable and bounded (fit for a metric label or a wire message); ``retryable`` says whether the same request,
made again with a *fresh* record, may succeed. Nothing here is raised for a reason that a caller could not act on.
"""

from __future__ import annotations


class TransferError(Exception):
    """Base of all errors of this package."""

    code: str = "transfer_error"
    retryable: bool = False


class LeaseExpired(TransferError):
    """The exposed buffer went back to its owner before it was claimed."""

    code = "lease_expired"
    retryable = True


class PeerLost(TransferError):
    """The process at the other end died, or its connection broke."""

    code = "peer_lost"
    retryable = True


class DeadlineExceeded(TransferError):
    """The operation did not end in its time. The peer may be alive and slow, stopped, or unreachable."""

    code = "deadline_exceeded"
    retryable = True


class PeerUnknown(TransferError):
    """The record carries no agent metadata and its peer is not loaded here: ask for a record with metadata."""

    code = "peer_unknown"
    retryable = True


class PoolExhausted(TransferError):
    """No room for this many bytes in the pool now. Try again when slots have been released."""

    code = "pool_exhausted"
    retryable = True


class Cancelled(TransferError):
    """This side, or the peer, ended the operation on purpose."""

    code = "cancelled"


class BadRecord(TransferError):
    """The record is malformed, altered, for somebody else, or does not describe what was expected."""

    code = "bad_record"


class RecordConsumed(BadRecord):
    """The record was used before by as many readers as it was made for."""

    code = "record_consumed"


class InvalidBuffer(TransferError, ValueError):
    """A local buffer that cannot be used: not contiguous, not writable, empty, or of another size than the peer's."""

    code = "invalid_buffer"


class DeviceUnavailable(TransferError):
    """The memory's device cannot be used by this connector."""

    code = "device_unavailable"


class BackendFailed(TransferError):
    """NIXL or its backend refused or broke the transfer for a reason of its own; the message says which."""

    code = "backend_failed"


class ConnectorClosed(TransferError):
    """The connector was closed, or failed, before or while the operation ran."""

    code = "connector_closed"


def typed(error: BaseException) -> TransferError:
    """The error as one of these: itself, or for any other a ``BackendFailed`` that names it."""
    return error if isinstance(error, TransferError) else BackendFailed(f"{type(error).__name__}: {error}")


def copy(error: TransferError) -> TransferError:
    """One to raise, of one that is kept."""
    return type(error)(*error.args)


def bare(error: BaseException) -> None:
    """Take the error's frames and its cause away: they hold the operation and its memory, in a cycle with whatever
    keeps the error. The message says it all."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
