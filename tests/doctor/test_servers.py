"""Servers that are not there, that are something else, that are ill or far off in time; ports that are taken."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from components.config import Topology
from components.doctor.servers import check_etcd, check_nats, check_port, host_port, listening
from components.protocol import ROLES
from components.runtime.servers import EtcdServer, NatsServer, free_port


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[str]:
    """A server that says that to everybody; with b"" it says nothing and stays."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if answer:
            await writer.drain()
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_addresses() -> None:
    assert host_port("nats://user:secret@host:1", 2) == ("host", 1)
    assert host_port("nats://host", 4222) == ("host", 4222)
    assert host_port("10.0.0.1:2379", 1) == ("10.0.0.1", 2379)


async def test_nats(shared_nats: NatsServer) -> None:
    assert (await check_nats(shared_nats.url)).level == "ok"
    gone = await check_nats(f"nats://127.0.0.1:{free_port()}")
    assert gone.level == "fail"
    assert "refused" in gone.says.lower() or "Connect" in gone.says
    assert "nats.servers" in gone.change
    async with saying(b"HTTP/1.1 400 Bad Request\r\n") as other:
        assert "is no NATS" in (await check_nats(f"nats://{other}")).says
    async with saying(b"") as silent:
        assert "does not answer" in (await check_nats(f"nats://{silent}")).says


async def test_etcd(shared_etcd: EtcdServer) -> None:
    healthy, clock = await check_etcd(shared_etcd.endpoint)
    assert (healthy.level, clock.level) == ("ok", "ok")
    (gone,) = await check_etcd(f"127.0.0.1:{free_port()}")
    assert gone.level == "fail"
    assert "etcd.endpoints" in gone.change
    async with saying(b'HTTP/1.0 503\r\n\r\n{"health":"false","reason":"RAFT NO LEADER"}') as ill:
        (found,) = await check_etcd(ill)
    assert found.level == "fail"
    assert "NO LEADER" in found.says


async def test_a_clock_that_differs_from_etcds(shared_etcd: EtcdServer) -> None:
    for seconds, level in ((0.0, "ok"), (3.5, "warn"), (-60.0, "fail")):
        _, clock = await check_etcd(shared_etcd.endpoint, now=time.time() + seconds)
        assert clock.level == level, clock


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = check_port("127.0.0.1", port, "NATS", "nats.port")
    assert found.level == "fail"
    assert "nats.port" in found.change and f"sport = :{port}" in found.change
    assert check_port("127.0.0.1", port, "NATS", "nats.port").level == "ok"


def test_what_listens_on_a_node() -> None:
    topology = Topology.model_validate({"frontend": {"replicas": 2}})
    ports = [port for _, port, _, _ in listening(topology, ROLES, True, "127.0.0.1")]
    assert ports == [8000, 8001, 4222, 2379, 2380]
    assert listening(topology, ["encode", "decode"], False, "127.0.0.1") == []
