"""Fetching a picture from a URL that a stranger chose."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

import httpcore2
import httpx2

from components.media.budget import Budget, Hold
from components.media.errors import MediaError
from components.media.limits import Limits
from components.media.network import GuardedBackend

_HEADERS = [
    (b"User-Agent", b"triptych"),
    (b"Accept", b"image/png, image/jpeg, image/webp, image/gif, image/bmp, */*;q=0.1"),
    # Pictures are compressed already, and an encoding would be one more thing that can unfold to more than it seems.
    (b"Accept-Encoding", b"identity"),
]
_REDIRECTS = {301, 302, 303, 307, 308}
_CONNECTIONS = 256
_CONNECTIONS_A_HOST = 16
"""A slow host occupies no more than these; who asks for more of it waits in its own time."""
_FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)


@dataclass(frozen=True)
class Policy:
    """Where pictures may come from. ``allow_private_networks`` opens loopback, private and link-local addresses."""

    allow_http: bool = True
    allow_private_networks: bool = False


class Fetcher:
    """Fetches ``http(s)`` URLs; keeps connections open between calls. Proxies named by the environment are not used:
    behind one, the address that is reached would not be the address that was checked.
    """

    def __init__(self, limits: Limits, policy: Policy, *, budget: Budget | None = None) -> None:
        """``budget`` bounds the bytes of all fetches together; left out, 16 pictures of the largest size."""
        self._limits = limits
        self._budget = budget or Budget(16 * limits.max_bytes)
        self._schemes = ("http", "https") if policy.allow_http else ("https",)
        self._network = GuardedBackend(policy.allow_private_networks)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=_CONNECTIONS,
            max_keepalive_connections=16,
            keepalive_expiry=15.0,
            network_backend=self._network,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._pool.aclose()
        self._network.close()

    async def fetch(self, url: str) -> bytes:
        """The body of the first answer that is not a redirect. Raises ``MediaError``."""
        target = self._parse(url)
        loop = asyncio.get_running_loop()
        gave_way = False

        def give_way() -> None:
            nonlocal gave_way
            gave_way = True
            if not deadline.expired():
                deadline.reschedule(loop.time())

        try:
            with self._budget.hold(give_way) as hold:
                async with asyncio.timeout(self._limits.timeout_seconds) as deadline:
                    for _ in range(self._limits.max_redirects + 1):
                        answer = await self._get(target, hold)
                        if isinstance(answer, bytes):
                            return answer
                        target = answer
        except TimeoutError as error:
            if gave_way:
                raise _too_slow() from error
            raise _unreachable(f"did not answer within {self._limits.timeout_seconds:g} seconds") from error
        except _FAILURES as error:
            raise _unreachable("could not be fetched: the connection failed") from error
        raise _unreachable(f"redirects more than {self._limits.max_redirects} times")

    async def _get(self, target: httpx2.URL, hold: Hold) -> bytes | httpx2.URL:
        """One request: the body, or where to go instead."""
        url = httpcore2.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
        host = self._hosts.setdefault(target.host, asyncio.Semaphore(_CONNECTIONS_A_HOST))
        headers = [(b"Host", target.netloc), *_HEADERS]
        async with host, self._pool.stream("GET", url, headers=headers) as response:
            answered = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                location = answered.get(b"location", b"").decode("latin-1")
                return self._parse(location, base=target)
            if response.status != 200:
                raise _unreachable(f"answered with status {response.status}")
            if answered.get(b"content-encoding", b"identity").lower() != b"identity":
                raise _unreachable("answered with a content encoding that was not asked for")
            return await self._read(response, answered.get(b"content-length", b""), hold)

    async def _read(self, response: httpcore2.Response, announced: bytes, hold: Hold) -> bytes:
        limit = self._limits.max_bytes
        too_large = MediaError("image_too_large", f"The picture at the URL has more than {limit} bytes.")
        # The header saves the download when it is honest; the count below is the check.
        if announced.isdigit() and int(announced[:20]) > limit:
            raise too_large
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            hold.add(len(chunk))
            if hold.ended:
                raise _too_slow()
            if len(body) > limit:
                raise too_large
        return bytes(body)

    def _parse(self, text: str, base: httpx2.URL | None = None) -> httpx2.URL:
        try:
            url = base.join(text) if base is not None else httpx2.URL(text)
            host, port = url.raw_host, url.port
        except (httpx2.InvalidURL, ValueError) as error:
            raise _unreachable("is not a valid URL") from error
        if url.scheme not in self._schemes:
            raise _unreachable(f"must begin with {' or '.join(f'{scheme}://' for scheme in self._schemes)}")
        if not host:
            raise _unreachable("names no host")
        if port is not None and not 0 < port < 2**16:
            raise _unreachable("names a port that there is not")
        if url.userinfo:
            raise _unreachable("must not carry a user name or password")
        return url


def _too_slow() -> MediaError:
    return MediaError("overloaded", "The picture came slowly and had to give way to others.")


def _unreachable(what: str) -> MediaError:
    return MediaError("image_unreachable", f"The picture's URL {what}.")
