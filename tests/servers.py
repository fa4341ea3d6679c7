"""Real NATS and etcd for tests, one of each for a test that asks for it, and the means to wait for what must come true.

A folder of tests that wants them says ``from tests.servers import etcd, nats`` in its ``conftest.py``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from components.runtime.servers import EtcdServer, NatsServer, die_with_parent, free_port

ROOT = Path(__file__).parents[1]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(free_port(), tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    async with EtcdServer(free_port(), free_port(), tmp_path / "etcd") as server:
        yield server


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
