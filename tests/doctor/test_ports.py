"""Ports that are taken: by something else, where it matters and where it does not. By our own stack: ``tests/e2e``."""

from __future__ import annotations

from components.config import Topology
from components.doctor.finding import Finding
from components.doctor.ports import check_ports
from components.runtime.servers import free_port
from tests.doctor.test_servers import saying


def settings(http: int, nats: int) -> dict[str, object]:
    return {
        "frontend": {"port": http},
        "nats": {"port": nats},
        "etcd": {"port": free_port(), "peer_port": free_port()},
    }


async def look(topology: Topology, port: int) -> Finding:
    (found,) = [each for each in await check_ports(topology) if each.check == f"port {port}"]
    return found


async def test_all_free() -> None:
    topology = Topology.model_validate(settings(free_port(), free_port()))
    assert [each.level for each in await check_ports(topology)] == ["ok"] * 4


async def test_http_is_taken() -> None:
    async with saying(b"HTTP/1.0 200 OK\r\n\r\npython_info 1\n") as other:
        port = int(other.rpartition(":")[2])
        found = await look(Topology.model_validate(settings(port, free_port())), port)
    assert found.level == "fail"
    assert "frontend.port" in found.change


async def test_a_port_of_an_embedded_server_is_taken() -> None:
    async with saying(b"220 mail\r\n") as other:
        port = int(other.rpartition(":")[2])
        topology = Topology.model_validate(settings(free_port(), port))
        asked_for = await look(topology, port)
        topology.nats.model_fields_set.remove("port")  # as if it were the default
        default = await look(topology, port)
    assert asked_for.level == "fail"
    assert "nats.port" in asked_for.change
    assert default.level == "ok"
    assert "takes a free one for NATS" in default.says
