"""``triptych status``: who is registered, does each answer, and what the exit status says."""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
import sys

import pytest

from components.cli.survey import ask_all
from components.config import Topology
from components.config.load import load
from components.runtime import Panel
from components.runtime.servers import EtcdServer, NatsServer
from tests.servers import shared_etcd, shared_nats

__all__ = ["shared_etcd", "shared_nats"]


@pytest.fixture
def topology(shared_nats: NatsServer, shared_etcd: EtcdServer) -> Topology:
    sets = [f"nats.servers={shared_nats.url}", f"etcd.endpoints={shared_etcd.endpoint}"]
    return load(None, [*sets, f"namespace=t{secrets.token_hex(4)}"])


async def test_each_instance_says_what_it_holds(topology: Topology) -> None:
    async with Panel.open("encode", topology) as one, Panel.open("decode", topology) as other:
        await one.serve({}, held=lambda: {"leases": 3})
        await other.serve({})
        reports = (await ask_all(topology, ("encode", "decode"), None, 5.0)).reports
        assert {each.instance.id: each.held for each in reports} == {one.id: {"leases": 3}, other.id: {}}
        assert {each.instance.role for each in (await ask_all(topology, ("decode",), None, 5.0)).reports} == {"decode"}
        assert len((await ask_all(topology, ("decode",), socket.gethostname(), 5.0)).reports) == 1
        assert (await ask_all(topology, ("decode",), "another-host", 5.0)).reports == []


async def test_one_that_is_registered_and_does_not_answer(topology: Topology) -> None:
    async with Panel.open("encode", topology) as panel:
        await panel.serve({})
        assert panel._service is not None
        await panel._service.close()
        (report,) = (await ask_all(topology, ("encode",), None, 5.0)).reports
        assert report.held is None
        assert report.problem


async def test_what_a_stranger_wrote_is_shown_and_fails_no_health_check(topology: Topology) -> None:
    servers = (
        "--set",
        f"nats.servers={topology.nats.servers[0]}",
        "--set",
        f"etcd.endpoints={topology.etcd.endpoints[0]}",
    )
    async with Panel.open("encode", topology) as panel:
        await panel.registry.register("encode", "stranger", b"[/red] no JSON")
        arguments = [*servers, "--set", f"namespace={topology.namespace}"]
        alone = await asyncio.to_thread(_status, "encode", *arguments)
        assert alone.returncode == 1
        await panel.serve({})
        beside = await asyncio.to_thread(_status, "encode", *arguments)
        assert beside.returncode == 0, beside.stdout
        for shown in (alone, beside):
            assert "'stranger'" in shown.stdout
            assert "skipped" in shown.stdout


def _status(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.cli", "status", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


async def test_nobody_there_is_status_1(topology: Topology) -> None:
    servers = [
        "--set",
        f"nats.servers={topology.nats.servers[0]}",
        "--set",
        f"etcd.endpoints={topology.etcd.endpoints[0]}",
    ]
    done = _status("decode", "--here", *servers)
    assert done.returncode == 1
    assert "no decode is registered from this host" in done.stderr


def test_no_servers_is_status_1() -> None:
    done = _status("--wait", "0.2", "--set", "nats.port=1")
    assert done.returncode == 1
    assert "NATS" in done.stderr
