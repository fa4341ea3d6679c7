"""Every failure a client can see, in the shape that OpenAI clients read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from components.messaging import CallError
from components.protocol import ErrorCode
from frontend.metrics import ERRORS

log = logging.getLogger(__name__)

# When it is worth asking again, in seconds: a place in the batch, or an instance that is just starting.
_RETRY_AFTER = {HTTPStatus.TOO_MANY_REQUESTS: "1", HTTPStatus.SERVICE_UNAVAILABLE: "2"}


class ErrorDetail(msgspec.Struct, kw_only=True):
    """``code`` is a stable word, ``param`` the field at fault, such as ``messages.0.content.1``."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    """What every failed request is answered with. ``panels`` and ``missing``: only where readiness was asked."""

    error: ErrorDetail
    panels: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    missing: list[str] | msgspec.UnsetType = msgspec.UNSET


class ApiError(Exception):
    """A request that fails with ``status``; raise it anywhere before the first byte of the answer."""

    def __init__(
        self, status: HTTPStatus, code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(error=ErrorDetail(message=message, type=_type(status), param=param, code=code))
        self.headers = dict(headers)
        if status in _RETRY_AFTER:
            self.headers.setdefault("Retry-After", _RETRY_AFTER[status])

    def json(self) -> bytes:
        return msgspec.json.encode(self.body)


def invalid(message: str, param: str | None = None) -> ApiError:
    """400: the client has to change something."""
    return ApiError(HTTPStatus.BAD_REQUEST, ErrorCode.INVALID_REQUEST, message, param=param)


def from_call(error: CallError, request_id: str) -> ApiError:
    """What went wrong further inside. An internal error is logged here and not told: its words may hold anything."""
    try:
        code = ErrorCode(error.code)
    except ValueError:
        code = ErrorCode.INTERNAL
    message = error.message
    if code is ErrorCode.INTERNAL:
        log.error("request %s failed in %s: %s", request_id, error.stage or "the frontend", error)
        message = f"The server failed to answer this request (id {request_id})."
    elif code is ErrorCode.BODY_TOO_LARGE:
        # Of a message between two panels; what it is that cannot carry it is no client's business.
        log.error("request %s: %s", request_id, error)
        message = "The request is larger than this server can handle."
    return ApiError(code.status, code, message, param=error.param)


def _type(status: HTTPStatus) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def install(app: FastAPI) -> None:
    """Makes every error of ``app``, the framework's own included, an ``ErrorBody``."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


def _respond(error: ApiError) -> Response:
    ERRORS.labels(error.body.error.code).inc()
    return Response(error.json(), error.status, error.headers, media_type="application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """A route that does not exist, or not with this method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = f"{status.phrase}: {request.method} {request.url.path}"
    return _respond(ApiError(status, status.name.lower(), message, headers=error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    """A bug of ours. Starlette raises it again after this answer is sent, so that it is logged."""
    request_id: Any = request.state.request_id
    return _respond(from_call(CallError(ErrorCode.INTERNAL, repr(error)), request_id))
