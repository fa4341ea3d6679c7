"""Somebody who can reach NATS and keeps to no rule: bytes on a socket, as no client library would send them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from components.runtime.servers import NatsServer


class Stranger:
    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    async def publish(self, subject: bytes, reply: bytes, head: bytes | None, body: bytes) -> None:
        """One message; ``head`` is the raw header block. The server may close the connection: then on a new one."""
        if self._reader is None or self._reader.at_eof() or self._reader.exception() is not None:
            await self._connect()
        assert self._writer is not None
        if head is None:
            line = b"PUB %s %s %d\r\n" % (subject, reply, len(body))
        else:
            line = b"HPUB %s %s %d %d\r\n" % (subject, reply, len(head), len(head) + len(body))
        self._writer.write(line + (head or b"") + body + b"\r\n")
        with suppress(ConnectionError):
            await self._writer.drain()

    async def arrived(self) -> None:
        """Returns once the server has read all of it, or has closed the connection over it."""
        assert self._writer is not None
        assert self._reader is not None
        self._writer.write(b"PING\r\n")
        with suppress(ConnectionError):
            async with asyncio.timeout(10):
                while (line := await self._reader.readline()) not in (b"PONG\r\n", b""):
                    if line == b"PING\r\n":
                        self._writer.write(b"PONG\r\n")

    async def _connect(self) -> None:
        await self.close()
        self._reader, self._writer = await asyncio.open_connection(self._server.host, self._server.port)
        self._writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        await self.arrived()

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None


@asynccontextmanager
async def stranger(server: NatsServer) -> AsyncIterator[Stranger]:
    one = Stranger(server)
    await one._connect()
    try:
        yield one
    finally:
        await one.close()
