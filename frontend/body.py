"""Reading a request body that may be too long."""

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


async def read_body(request: Request, limit: int, seconds: float) -> bytearray:
    """The whole body. Raises ``ApiError`` 413 if it has more than ``limit`` bytes, 408 if it takes too long."""
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
                if length <= limit:
                    body += chunk
                else:
                    body.clear()
    except TimeoutError as error:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT, ErrorCode.DEADLINE_EXCEEDED, "The request body did not arrive in time."
        ) from error
    except ClientDisconnect as error:
        raise ApiError(HTTPStatus.REQUEST_TIMEOUT, ErrorCode.CANCELLED, "The client left.") from error
    if length > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        ErrorCode.BODY_TOO_LARGE,
        f"The request body has more than {limit} bytes.",
        headers={"Connection": "close"},
    )
