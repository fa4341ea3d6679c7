"""What ``triptych nodes`` starts on each machine: takes commands from standard input, answers on standard output.

Both are JSON, an object a line. It lives no longer than its input: when the connection that started it ends, for
whatever reason, it drains what it runs and ends, so that nothing has to be found and killed on a remote machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# etcd3's generated code needs it before protobuf is first imported, whoever imports that.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

from rich.console import Console

from components import aio, background
from components.cli.board import Board
from components.cli.role import FAILED
from components.cli.supervisor import StartError, Supervisor
from components.config import Topology
from components.doctor.examine import examine_node
from components.doctor.finding import Finding
from components.doctor.servers import check_etcd, check_nats, check_port, listening
from components.protocol import ROLES
from components.runtime.servers import EtcdServer, NatsServer, Server, ServerError, keep


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


class _Reporter(Board):
    """The supervisor's board, at the other end of the connection."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True))

    def set(self, name: str, state: str) -> None:
        say(log=f"{name:11} | {state}")

    def say(self, text: str, style: str = "") -> None:
        say(log=text)


class Agent:
    def __init__(self, name: str) -> None:
        self._state = Path(".triptych") / "nodes" / name
        self._servers: list[Server] = []
        self._supervisor: Supervisor | None = None
        self._keepers: list[asyncio.Task[None]] = []

    async def check(self, topology: Topology, address: str, servers: bool, lanes: bool) -> list[Finding]:
        """Is this machine fit for its share?"""
        roles = [role for role in ROLES if getattr(topology, role).replicas]
        ports = [check_port(*each) for each in listening(topology, roles, servers, address)]
        return [*ports, *await examine_node(topology, lanes=lanes)]

    async def serve(self, topology: Topology, address: str) -> None:
        """NATS and etcd for everybody, started again when they die."""
        for folder in ("nats", "etcd"):
            shutil.rmtree(self._state / folder, ignore_errors=True)  # what an earlier run left
        self._servers = [
            NatsServer(topology.nats.port, self._state / "nats", host=address),
            EtcdServer(topology.etcd.port, topology.etcd.peer_port, self._state / "etcd", host=address),
        ]
        await asyncio.gather(*(server.start() for server in self._servers))
        for server in self._servers:
            keeper = keep(server, server.start, lambda text: say(log=text))
            self._keepers.append(background.task(keeper, f"the keeper of {server.name}"))

    async def reach(self, topology: Topology) -> list[Finding]:
        """Are the servers in reach from here, and do the clocks agree?"""
        found = [await check_nats(address) for address in topology.nats.addresses]
        for endpoint in topology.etcd.addresses:
            found += await check_etcd(endpoint)
        return found

    async def start(self, topology: Topology) -> None:
        """Returns once every role here is registered and, where a frontend is, every panel is there."""
        self._supervisor = Supervisor(topology, self._state, _Reporter(), verbose=True)
        await self._supervisor.start()

    async def drain(self) -> None:
        if self._supervisor is not None:
            await self._supervisor.drain()

    async def close(self) -> None:
        await aio.end(*self._keepers)
        if self._supervisor is not None:
            await self._supervisor.kill()
        await asyncio.gather(*(server.stop() for server in self._servers))

    async def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command; the answer carries its number."""
        name = command["do"]
        topology = Topology.model_validate_json(json.dumps(command["topology"]))
        if name == "check":
            found = await self.check(topology, command["address"], command["servers"], command["lanes"])
            return {"findings": [asdict(each) for each in found]}
        if name == "reach":
            return {"findings": [asdict(each) for each in await self.reach(topology)]}
        try:
            if name == "servers":
                await self.serve(topology, command["address"])
            elif name == "start":
                await self.start(topology)
            else:
                await self.drain()
        except (ServerError, StartError) as error:
            return {"error": str(error)}
        return {}


class _Input:
    """Commands as they come, and the moment when no more can come: at the end of the input, or at a signal.

    A failure in this process, on whichever thread, means that too.
    """

    def __init__(self) -> None:
        self.commands: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.failed = False
        self._loop = asyncio.get_running_loop()

    def fail(self, reason: str) -> None:
        """For ``background.ends_process``."""
        say(log=f"{reason}: this agent ends")
        self.failed = True
        self._loop.call_soon_threadsafe(self._end)

    async def read(self) -> None:
        lines = asyncio.StreamReader(limit=2**22)
        await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        # A launcher that passes signals on (srun does) means: end, as at the end of the input.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._end)
        while line := await lines.readline():
            self.commands.put_nowait(json.loads(line))
        self._end()

    def _end(self) -> None:
        self.ended.set()
        self.commands.put_nowait(None)


async def _run(name: str) -> int:
    """Until the input ends; the exit status."""
    agent, commands = Agent(name), _Input()
    with background.ends_process(commands.fail):
        reading = background.task(commands.read(), "the reader of commands")
        try:
            while (command := await commands.commands.get()) is not None:
                answer = await aio.unless(commands.ended, agent.do(command))
                if answer is None:
                    break
                say(answer=command["number"], **answer)
            await agent.drain()
        finally:
            await aio.end(reading)
            await agent.close()
    return FAILED if commands.failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(sys.argv[1])))
