"""``triptych doctor`` beside a running stack: that has its ports, as it should."""

from __future__ import annotations

import json

from benchmarks.stack import Stack
from components.runtime.servers import free_port
from tests.servers import process


async def doctor(*sets: str) -> tuple[int, dict[str, str]]:
    """The exit status, and what it says of each port and of what failed."""
    options = [part for setting in sets for part in ("--set", setting)]
    async with process("components.cli", "doctor", "--no-lanes", "--json", *options) as command:
        lines = []
        while line := await command.line(60):
            lines.append(line)
        status = await command.ended()
    findings = json.loads("\n".join(lines))["findings"]
    return status, {each["check"]: each["says"] for each in findings if "port" in each["check"] or each["change"]}


async def test_the_ports_of_a_running_stack_are_its_own(stack: Stack) -> None:
    http, nats, etcd = (address.rpartition(":")[2] for address in (stack.url, stack.nats, stack.etcd))
    status, says = await doctor(
        f"frontend.port={http}", f"nats.port={nats}", f"etcd.port={etcd}", f"etcd.peer_port={free_port()}"
    )
    assert status == 0, says
    assert says[f"port {http}"] == "the frontend of the stack that runs here"
    assert says[f"port {nats}"] == "NATS of the stack that runs here"
    assert says[f"port {etcd}"] == "etcd of the stack that runs here"


async def test_another_deployment_on_the_same_servers_is_not_ours(stack: Stack) -> None:
    nats, etcd = (address.rpartition(":")[2] for address in (stack.nats, stack.etcd))
    ports = (f"nats.port={nats}", f"etcd.port={etcd}", f"frontend.port={free_port()}")
    status, says = await doctor("namespace=another", *ports)
    assert status == 1, says
    assert "cannot listen" in says[f"port {nats}"]
