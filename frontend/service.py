"""The frontend: the OpenAI API over HTTP; asks ``chat`` of processors. Nobody asks it anything over the bus."""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from components import aio, background, memory
from components.config import Topology
from components.runtime import Panel
from components.runtime.connector import open_connector
from frontend.app import create_app
from frontend.health import NEEDED
from frontend.images import ImageShelf
from frontend.limits import LimitsInForce
from frontend.protocol import Protocol


class _Server(uvicorn.Server):
    """uvicorn inside a process that has its own way to be stopped."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(
    app: ASGIApp, listener: socket.socket, drain_seconds: float, client_seconds: float
) -> AsyncIterator[None]:
    """Answers HTTP inside the block. On the way out no new requests, and the running ones get ``drain_seconds``.

    A client that is waited for longer than ``client_seconds`` is cut off.
    """
    config = uvicorn.Config(
        app,
        http=functools.partial(Protocol, seconds=client_seconds),  # type: ignore[arg-type]  # what makes one
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        # Longer than clients keep idle connections, so that it is they who close and no request meets a closing one.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    server = _Server(config)
    ended = asyncio.Event()

    async def serve() -> None:
        try:
            await server.serve([listener])
            if not server.should_exit:
                raise RuntimeError("the HTTP server has stopped")
        finally:
            ended.set()

    task = background.task(serve(), "HTTP server")
    await aio.unless(ended, server.listening.wait())
    try:
        if task.done():
            task.result()
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([task])


def bind(host: str, port: int) -> socket.socket:
    """Ends the process with a message that says what to change if the port is taken."""
    # asyncio sets TCP_NODELAY only where the socket says that it is TCP; without it a first token waits up to 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # As every server does: a port whose last connections still linger is free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        sys.exit(f"port {port} of {host} cannot be used ({error.strerror}); `frontend.port` changes it")
    return listener


async def run(topology: Topology, instance: str | None = None) -> None:
    """Serve until told to stop."""
    settings = topology.frontend
    memory.few_arenas()
    # First of all: whoever must learn that the port is taken should not wait for NATS.
    with bind(settings.host, settings.port) as listener:
        async with (
            Panel.open("frontend", topology, instance) as panel,
            open_connector(topology, panel.id) as connector,
        ):
            pool = await connector.create_pool(settings.pool_bytes)
            panels = {role: await panel.peers(role) for role in NEEDED}
            shelf = ImageShelf(connector, pool, topology.encode.media.max_bytes)
            limits = LimitsInForce(settings, panels["processor"], panel.bus.largest_request)
            app = create_app(topology, panels, shelf, limits)
            async with serving(app, listener, topology.drain_seconds, settings.client_timeout_seconds):
                await panel.serve({})
                await panel.until_stopped()
