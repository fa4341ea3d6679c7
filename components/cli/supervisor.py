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
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

import httpx2
import yaml

from components import aio, background
from components.cli.board import Board
from components.cli.child import Child, describe_end
from components.cli.role import MODULES
from components.config import Topology
from components.config.source import PREFIX
from components.protocol import ROLES, Role
from components.runtime.restarts import Restarts, soon
from components.runtime.servers import EtcdServer, NatsServer, Server, ServerError, keep

_WAY: tuple[Role, ...] = ("frontend", "processor", "decode", "prefill", "encode")
"""Each sends requests to the ones after it only."""

# After the drain time a role cuts its requests itself; it has this long to do so and end.
_GRACE_SECONDS = 2.0
_PATIENCE_SECONDS = 2.0
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
        self._keepers += [background.task(self._keep(slot), f"the keeper of {slot.name}") for slot in self.slots]
        if self.topology.frontend.replicas:
            await self._answers()
        return True

    async def serve(self) -> Literal[True]:
        """Ends only by cancellation: what dies is started again by background work, from ``start`` on."""
        await asyncio.Event().wait()
        return True

    async def drain(self) -> Literal[True]:
        """Stops each role once nobody sends it requests any more, so that what is in flight is finished.

        That is the order of a request's way. With a NATS of its own the stack has no senders but its frontends: when
        they are gone, the others have nothing left and stop together. All of it takes ``drain_seconds`` at most.
        """
        await aio.end(*self._keepers)
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
        await aio.end(*self._keepers)
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
        try:
            await asyncio.gather(*(self._start_server(server) for server in self._servers))
        except ServerError as error:
            raise StartError(str(error)) from error
        for server in self._servers:
            keeper = keep(server, partial(self._start_server, server), partial(self.board.say, style="yellow"))
            self._keepers.append(background.task(keeper, f"the keeper of {server.name}"))

    async def _start_server(self, server: Server) -> None:
        self.board.set(server.name, "starting")
        try:
            await server.start()
        except ServerError:
            self.board.set(server.name, "failed")
            raise
        self.board.set(server.name, "ready")

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
        """Raises StartError where the machine cannot hold one more process."""
        command = [sys.executable, "-m", MODULES[slot.role].rpartition(".")[0]]
        command += ["-c", str(self._folder / "topology.yaml")]
        # A fresh name each time: peers may still hold what they knew of the process before it.
        command += ["--id", f"{slot.name}-{secrets.token_hex(2)}"]
        if slot.role == "frontend":
            command += ["--set", f"frontend.port={self.topology.frontend.port + slot.index}"]
        if devices := getattr(getattr(self.topology, slot.role), "devices", ()):
            command += ["--set", f"{slot.role}.device={devices[slot.index % len(devices)]}"]
        self.board.set(slot.name, "starting")
        try:
            child = await Child.start(command, self._environment(slot.role), self._writer(slot.name))
        except OSError as error:
            raise StartError(f"{slot.name} cannot be started: {error.strerror}") from error
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
        last = "\n".join(f"  {line}" for line in child.last_words())
        end = f"{slot.name} ended with {describe_end(status)} while starting"
        raise StartError(f"{end}; its last lines:\n{last}\nall lines of all roles: {self.log_file}")

    async def _keep(self, slot: Slot) -> None:
        """Starts the slot's process again each time it dies."""
        restarts = Restarts()
        child, since = self._children[slot], time.monotonic()
        while True:
            status = await child.wait()
            pause = restarts.pause(time.monotonic() - since)
            self.board.set(slot.name, "restarting")
            end = f"{slot.name}: ended with {describe_end(status)}, starts again {soon(pause)}"
            self.board.say("\n".join([end, *(f"  {line}" for line in child.last_words()[-3:])]), "yellow")
            await asyncio.sleep(pause)
            child = await self._spawn_again(slot, restarts)
            ready = await child.ready()
            since = time.monotonic()
            if ready:
                self.board.set(slot.name, "ready")

    async def _spawn_again(self, slot: Slot, restarts: Restarts) -> Child:
        """As often as it takes: memory and process numbers come free again."""
        while True:
            try:
                return await self._spawn(slot)
            except StartError as error:
                self.board.say(str(error), "red")
                await asyncio.sleep(restarts.pause(0.0))

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
