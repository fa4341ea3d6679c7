"""Runs a whole topology: the embedded servers, one process for each replica of each role, and the end of them all."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

import httpx2
import yaml

from components.cli.board import Board
from components.cli.child import Child, describe_end
from components.cli.role import MODULES
from components.config import Topology
from components.config.source import PREFIX
from components.protocol import ROLES, Role
from components.runtime.servers import EtcdServer, NatsServer, Server, ServerError

_WAY: tuple[Role, ...] = ("frontend", "processor", "decode", "prefill", "encode")
"""Each sends requests to the ones after it only."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
# A process that ran this long before it died starts again after the first pause, not a grown one.
_STABLE_SECONDS = 60.0
# After the drain time a role cuts its requests itself; it has this long to do so and end.
_GRACE_SECONDS = 2.0
_PATIENCE_SECONDS = 2.0
_SERVER_CHECK_SECONDS = 0.5
_SERVER_PAUSE_SECONDS = 5.0
_LOG_BYTES = 32 * 2**20


class StartError(Exception):
    """The stack did not come up; the message says what failed, with its last lines."""


@dataclass(frozen=True)
class Slot:
    """A place in the topology, filled by one process after another."""

    role: Role
    index: int

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"


class Supervisor:
    """``start``, then ``drain``; ``kill`` at any time. Everything it writes lies below ``state``."""

    def __init__(self, topology: Topology, state: Path, board: Board, verbose: bool) -> None:
        self.topology = topology
        self.board = board
        self.slots = [Slot(role, i) for role in ROLES for i in range(getattr(topology, role).replicas)]
        self.log_file = state / "logs" / f"{topology.frontend.port}.log"
        self._folder = state / f"run-{topology.frontend.port}"
        self._verbose = verbose
        self._log = logging.Logger("children")
        self._children: dict[Slot, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._servers: list[Server] = []

    @property
    def url(self) -> str:
        """Where the first frontend answers, as seen from this machine."""
        host = self.topology.frontend.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.topology.frontend.port}"

    async def start(self) -> Literal[True]:
        """Starts everything and returns once requests are answered; raises StartError."""
        try:
            self._make_folder()
        except OSError as error:
            raise StartError(
                f"{error.filename}: {error.strerror}; start it in a folder that can be written to"
            ) from error
        await self._start_servers()
        # All at once: most of a role's start is Python importing, which needs no other role.
        for slot in self.slots:
            await self._spawn(slot)
        await asyncio.gather(*(self._first_ready(slot) for slot in self.slots))
        self._keepers += [asyncio.create_task(self._keep(slot)) for slot in self.slots]
        if self.topology.frontend.replicas:
            await self._answers()
        return True

    async def serve(self) -> Literal[True]:
        """Starts again what dies; ends only by cancellation, or with what cannot be helped."""
        await asyncio.gather(*self._keepers)
        return True

    async def drain(self) -> Literal[True]:
        """Stops each role once nobody sends it requests any more, so that what is in flight is finished.

        That is the order of a request's way. With a NATS of its own the stack has no senders but its frontends: when
        they are gone, the others have nothing left and stop together. All of it takes ``drain_seconds`` at most.
        """
        for keeper in self._keepers:
            keeper.cancel()
        deadline = time.monotonic() + self.topology.drain_seconds
        shared = bool(self.topology.nats.servers)
        for stage in [{role} for role in _WAY] if shared else [{_WAY[0]}, set(_WAY[1:])]:
            children = {slot: child for slot, child in self._children.items() if slot.role in stage}
            for slot, child in children.items():
                self.board.set(slot.name, "stopping")
                child.terminate()
            left = max(deadline - time.monotonic(), 0.0) + _GRACE_SECONDS
            await asyncio.gather(*(self._end(slot, child, left) for slot, child in children.items()))
        await self.kill()
        return True

    async def kill(self) -> None:
        """Ends what is left, at once; returns when it is gone."""
        for keeper in self._keepers:
            keeper.cancel()
        for child in self._children.values():
            child.kill()
        await asyncio.gather(*(child.wait() for child in self._children.values()))
        self._children.clear()
        # Nothing in them outlives the stack, so they need no time to write it down.
        await asyncio.gather(*(server.kill() for server in self._servers))
        self._servers.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_folder(self) -> None:
        # What an earlier run left that was killed.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.unlink(missing_ok=True)
        self._log.addHandler(RotatingFileHandler(self.log_file, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8"))
        settings = yaml.safe_dump(self.topology.model_dump(mode="json"), sort_keys=False)
        (self._folder / "topology.yaml").write_text(settings, encoding="utf-8")

    async def _start_servers(self) -> None:
        nats, etcd = self.topology.nats, self.topology.etcd
        if not nats.servers:
            self._servers.append(NatsServer(nats.port, self._folder / "nats"))
        if not etcd.endpoints:
            self._servers.append(EtcdServer(etcd.port, etcd.peer_port, self._folder / "etcd"))
        await asyncio.gather(*(self._start_server(server) for server in self._servers))
        self._keepers += [asyncio.create_task(self._keep_server(server)) for server in self._servers]

    async def _start_server(self, server: Server) -> None:
        self.board.set(server.name, "starting")
        try:
            await server.start()
        except ServerError as error:
            self.board.set(server.name, "failed")
            raise StartError(str(error)) from error
        self.board.set(server.name, "ready")

    async def _keep_server(self, server: Server) -> None:
        """Starts the server again each time it dies, on the same port with the same data: the roles come back to it."""
        while True:
            await asyncio.sleep(_SERVER_CHECK_SECONDS)
            if server.pid is None:
                self.board.say(f"{server.name}: ended, starts again", "yellow")
                try:
                    await self._start_server(server)
                except StartError as error:  # somebody took its port meanwhile; it may come free
                    self.board.say(str(error), "red")
                    await asyncio.sleep(_SERVER_PAUSE_SECONDS)

    def _environment(self, role: Role) -> dict[str, str]:
        # The settings are in the file that each child gets; a variable would be applied a second time over it.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        # etcd3 cannot work with protobuf's other implementations, and it is chosen at the first import of protobuf.
        environment["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
        environment["PYTHONUNBUFFERED"] = "1"
        # Without it each numeric library makes a thread for each core in each process.
        environment["OMP_NUM_THREADS"] = str(getattr(getattr(self.topology, role), "threads", 1))
        return environment

    async def _spawn(self, slot: Slot) -> Child:
        command = [sys.executable, "-m", MODULES[slot.role].rpartition(".")[0]]
        command += ["-c", str(self._folder / "topology.yaml")]
        # A fresh name each time: peers may still hold what they knew of the process before it.
        command += ["--id", f"{slot.name}-{secrets.token_hex(2)}"]
        if slot.role == "frontend":
            command += ["--set", f"frontend.port={self.topology.frontend.port + slot.index}"]
        if devices := getattr(getattr(self.topology, slot.role), "devices", ()):
            command += ["--set", f"{slot.role}.device={devices[slot.index % len(devices)]}"]
        self.board.set(slot.name, "starting")
        child = await Child.start(command, self._environment(slot.role), self._writer(slot.name))
        self._children[slot] = child
        return child

    def _writer(self, name: str) -> Callable[[str], None]:
        def write(line: str) -> None:
            self._log.info("%-11s | %s", name, line)
            if self._verbose:
                self.board.say(f"{name:11} | {line}")

        return write

    async def _first_ready(self, slot: Slot) -> None:
        child = self._children[slot]
        if await child.ready():
            self.board.set(slot.name, "ready")
            return
        status = await child.wait()
        self.board.set(slot.name, "failed")
        last = "\n".join(f"  {line}" for line in child.lines)
        end = f"{slot.name} ended with {describe_end(status)} while starting"
        raise StartError(f"{end}; its last lines:\n{last}\nall lines of all roles: {self.log_file}")

    async def _keep(self, slot: Slot) -> None:
        """Starts the slot's process again each time it dies."""
        pause = _FIRST_PAUSE
        child = self._children[slot]
        while True:
            began = time.monotonic()
            status = await child.wait()
            if time.monotonic() - began > _STABLE_SECONDS:
                pause = _FIRST_PAUSE
            self.board.set(slot.name, "restarting")
            end = f"{slot.name}: ended with {describe_end(status)}, starts again in {pause:g} s"
            self.board.say("\n".join([end, *(f"  {line}" for line in list(child.lines)[-3:])]), "yellow")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            child = await self._spawn(slot)
            if await child.ready():
                self.board.set(slot.name, "ready")

    async def _end(self, slot: Slot, child: Child, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await child.wait()
        except TimeoutError:
            self.board.say(f"{slot.name}: not done after {seconds:.0f} s, killed", "yellow")
            child.kill()
            await child.wait()

    async def _answers(self) -> None:
        """Returns once the frontend says that it sees every panel."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as client:
            said, began = "", time.monotonic()
            while True:
                try:
                    response = await client.get("/ready")
                    missing = "" if response.is_success else response.text or f"HTTP {response.status_code}"
                except httpx2.TransportError as error:
                    missing = str(error) or type(error).__name__
                if not missing:
                    return
                # Roles that are ready see each other a moment later; only what lasts is worth a line.
                if missing != said and time.monotonic() - began > _PATIENCE_SECONDS:
                    self.board.say(f"not ready yet: {missing}", "dim")
                    said = missing
                await asyncio.sleep(0.05)
