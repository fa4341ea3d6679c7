"""Around every request: its id, and the count of how it ended."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.metrics import REQUESTS

_USABLE = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """Takes ``x-request-id`` from the client if it is usable, else makes one; answers with it.

    Outside of everything else, so that answers to failures of ours carry it as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        id = given if _USABLE.fullmatch(given) else secrets.token_hex(12).encode()
        scope.setdefault("state", {})["request_id"] = id.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id)]
                REQUESTS.labels(getattr(scope.get("route"), "path", "none"), str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, send_with_id)
