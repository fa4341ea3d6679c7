"""Connections that only go where the policy allows.

The check sits where the connection is made, not where the URL is read: a name is resolved once, every address it has is
judged, and the connection goes to one of the judged addresses. A name that answers differently the second time it is
asked (DNS rebinding) is never asked a second time. That needs a hook below HTTP and above the socket, which httpcore's
network backend is; TLS still verifies the name, because httpcore takes it from the URL and not from the address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import httpcore2

from components.media.addresses import Address, is_public
from components.media.errors import MediaError

_NAMES_AT_ONCE = 32
"""A name whose server is slow occupies a thread for as long as the system's resolver tries, whatever our deadline."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Resolves, judges, connects. Raises ``MediaError`` ``image_unreachable`` for an address it refuses."""

    def __init__(self, allow_private_networks: bool) -> None:
        self._allow_private_networks = allow_private_networks
        self._backend = httpcore2.AnyIOBackend()
        # Not the event loop's own threads: slow names would keep pictures and prompts from being worked on.
        self._resolver = ThreadPoolExecutor(_NAMES_AT_ONCE, "resolver")

    def close(self) -> None:
        self._resolver.shutdown(wait=False, cancel_futures=True)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (the interface is httpcore's)
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._resolve(host)
        # One private address among public ones is enough to refuse: which one answers is not ours to choose.
        if not self._allow_private_networks and not all(is_public(address) for address in addresses):
            raise MediaError("image_unreachable", "The picture's URL does not lead to a public address.")
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._backend.connect_tcp(
                    str(address), port, timeout=timeout, local_address=local_address, socket_options=socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError("the name has no address")

    async def _resolve(self, host: str) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._resolver, _look_up, host)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("the name cannot be resolved") from error
        return list(dict.fromkeys(found))


def _look_up(host: str) -> list[Address]:
    return [
        ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    ]
