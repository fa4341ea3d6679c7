"""Reading a request body: of the right kind, and not longer than it may be."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import Request
from starlette.requests import ClientDisconnect

from components.protocol import ErrorCode
from frontend.errors import ApiError

# A client that is still sending does not read an answer, and closing the connection then loses it. So up to this many
# times the limit is read and thrown away before the answer; who sends more has to make do with a closed connection.
_PATIENCE = 4


_BOM = b"\xef\xbb\xbf"


async def read_json(request: Request, limit: int, seconds: float) -> bytearray:
    """The whole body. Raises ``ApiError`` 415 if it is not plain JSON by its headers, 413 if it has more than ``limit``
    bytes, 408 if it takes too long.
    """
    problem = _wrong_kind(request)
    body, length, most = bytearray(), 0, (1 + _PATIENCE) * limit
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                length += len(chunk)
                if length > most:
                    raise _too_large(limit)
                if length <= limit and problem is None:
                    body += chunk
                else:
                    body.clear()
    except TimeoutError as error:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT, ErrorCode.DEADLINE_EXCEEDED, "The request body did not arrive in time."
        ) from error
    except ClientDisconnect as error:
        raise ApiError(HTTPStatus.REQUEST_TIMEOUT, ErrorCode.CANCELLED, "The client left.") from error
    if problem is not None:
        raise problem
    if length > limit:
        raise _too_large(limit)
    # Some editors and shells put it in front, where JSON does not allow it.
    return body[len(_BOM) :] if body.startswith(_BOM) else body


def _wrong_kind(request: Request) -> ApiError | None:
    # A web page may have a browser send any other type, or none, to a server in its user's own network without asking
    # that server first (CORS). So nothing else is taken for JSON.
    type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if type != "application/json":
        given = f"not {type[:100]}" if type else "and its Content-Type must say so"
        return _unsupported(f"The request body must be application/json, {given}.", {})
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        message = f"The Content-Encoding {encoding[:100]} is not supported; send the request body unpacked."
        return _unsupported(message, {"Accept-Encoding": "identity"})
    return None


def _unsupported(message: str, headers: dict[str, str]) -> ApiError:
    return ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message, headers=headers)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        ErrorCode.BODY_TOO_LARGE,
        f"The request body has more than {limit} bytes.",
        headers={"Connection": "close"},
    )
