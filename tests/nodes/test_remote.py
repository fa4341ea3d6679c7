"""The launcher's end of a node, with stand-ins for an agent; and the agent's keepers."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from components import background
from components.config import load
from components.nodes import agent as agents
from components.nodes import remote as remotes
from components.nodes.agent import Agent
from components.nodes.remote import NodeError, Remote
from components.runtime.servers import free_port
from tests.waiting import until


@asynccontextmanager
async def node(script: str) -> AsyncIterator[tuple[Remote, list[str]]]:
    """An agent that is a shell script."""
    lines: list[str] = []
    remote = await Remote.start("alpha", ["bash", "-c", script], lines.append)
    try:
        yield remote, lines
    finally:
        await remote.close()


async def test_lines_of_a_shell_on_the_way_are_log_lines() -> None:
    strange = ["{ welcome }", "[1]", '{"answer', "{" * 5000, '{"log": 7}', '{"log": "of the agent"}']
    script = "".join(f"echo {shlex.quote(line)};" for line in strange) + "read; echo '{\"answer\": 1}'; cat"
    async with node(script) as (remote, lines), asyncio.timeout(10):
        assert await remote.ask("check", None, 5) == {"answer": 1}
        assert lines == [*strange[:4], "7", "of the agent"]


async def test_an_answer_that_is_no_longer_waited_for_is_not_the_next_ones() -> None:
    script = 'read; read; echo \'{"answer": 1}\'; echo \'{"answer": 2, "findings": []}\'; cat'
    async with node(script) as (remote, _), asyncio.timeout(10):
        with pytest.raises(NodeError, match="no answer"):
            await remote.ask("check", None, 0.1)
        assert (await remote.ask("check", None, 5))["answer"] == 2


async def test_whoever_waits_for_an_answer_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(line: bytes) -> dict[str, object]:
        raise OverflowError

    monkeypatch.setattr(remotes, "_message", broken)
    heard: list[str] = []
    with background.ends_process(heard.append):
        async with node("read; echo; cat") as (remote, _), asyncio.timeout(10):
            with pytest.raises(NodeError, match="ended"):
                await remote.ask("check", None, 60)
    assert heard == ["the reader of alpha ended unexpectedly"]


async def test_a_connection_that_somebody_else_holds_open_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ssh does that shares its connection: a process in the background keeps what was the agent's output."""
    monkeypatch.setattr(remotes, "_END_SECONDS", 0.2)
    lines: list[str] = []
    async with asyncio.timeout(10):
        remote = await Remote.start("alpha", ["bash", "-c", "sleep 60 & echo $!; cat"], lines.append)
        await until(lambda: bool(lines), lambda: lines)
        await remote.close()
    os.kill(int(lines[0]), signal.SIGKILL)


async def test_a_server_whose_port_is_taken_comes_back_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    monkeypatch.setattr(agents, "say", lambda **message: said.append(message.get("log", "")))
    nats, etcd, peer = free_port(), free_port(), free_port()
    topology = load(None, [f"nats.port={nats}", f"etcd.port={etcd}", f"etcd.peer_port={peer}"])
    agent = Agent("alpha")
    try:
        await agent.serve(topology, "127.0.0.1")
        server = next(each for each in agent._servers if each.port == nats)
        assert server.pid is not None
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            os.kill(server.pid, signal.SIGKILL)
            await until(lambda: _bound(other, nats), lambda: "the port stays taken")
            await until(lambda: any("cannot be used" in line for line in said), lambda: said)
        await until(lambda: server.pid is not None, lambda: said, within=20)
    finally:
        await agent.close()


def _bound(listener: socket.socket, port: int) -> bool:
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    listener.listen()
    return True


@pytest.mark.parametrize("command", ["no JSON", "[" * 100_000])
async def test_an_agent_that_cannot_read_its_commands_ends_with_its_cause(tmp_path: Path, command: str) -> None:
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "components.nodes.agent", "alpha"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert agent.stdin is not None
    agent.stdin.write(command.encode() + b"\n")  # The input stays open.
    await asyncio.wait_for(agent.wait(), 60)
    output, errors = await agent.communicate()
    assert agent.returncode == 70, errors
    assert b"the reader of commands ended unexpectedly" in output
    assert b"Error" in errors
