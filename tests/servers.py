"""Real NATS and etcd for tests, and the means to wait for what must come true.

``nats`` and ``etcd`` are a test's own, to be stopped and started at will; ``shared_nats`` and ``shared_etcd`` run for
the whole session. A folder of tests that wants them imports them into its ``conftest.py``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from components.runtime.servers import EtcdServer, NatsServer, Server, die_with_parent, free_port

ROOT = Path(__file__).parents[1]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(free_port(), tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    async with EtcdServer(free_port(), free_port(), tmp_path / "etcd") as server:
        yield server


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(free_port(), tmp_path_factory.mktemp("nats"))
    with _running(server):
        yield server


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(free_port(), free_port(), tmp_path_factory.mktemp("etcd"))
    with _running(server):
        yield server


@contextmanager
def _running(server: Server) -> Iterator[None]:
    """On an event loop of its own: each test has another one. The thread must stay, the server dies with it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=server.name, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns once the condition holds. Raises ``TimeoutError``."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions of any kind, in other processes too
            await asyncio.sleep(0.005)


class Process:
    """A Python module running as a process of its own; what it prints is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def line(self, seconds: float = 15.0) -> str:
        """The next line that it prints; "" once it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            return (await self._process.stdout.readline()).decode().strip()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, seconds: float = 10.0) -> int:
        """Its exit status."""
        async with asyncio.timeout(seconds):
            return await self._process.wait()


@asynccontextmanager
async def process(module: str, *arguments: str) -> AsyncIterator[Process]:
    """Runs ``python -m module arguments``; killed at the end if it still runs."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=die_with_parent,
    )
    try:
        yield Process(child)
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
            child.kill()
        await child.wait()
