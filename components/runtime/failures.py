"""Errors of the parts below a panel, as the one error that crosses the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from components.engines.base import EngineError
from components.media import MediaError
from components.messaging import CallError
from components.nixl_connect import TransferError
from components.protocol import ErrorCode


@contextmanager
def as_call_errors() -> Iterator[None]:
    """Raise what engine, media and data plane raise as ``CallError``; anything else passes."""
    try:
        yield
    except EngineError as error:
        raise CallError(error.code, error.message, retryable=error.retryable) from error
    except MediaError as error:
        raise CallError(error.code, error.message) from error
    except TransferError as error:
        raise CallError(ErrorCode.TRANSFER_FAILED, str(error), retryable=error.retryable) from error
