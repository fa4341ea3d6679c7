"""Whether what ``triptych up`` would start here could listen, also beside a stack that runs here already."""

from __future__ import annotations

from components.cli.survey import ask_all, this_host
from components.config import Topology
from components.doctor.finding import Finding
from components.doctor.servers import ask, check_etcd, check_nats, check_port, listening
from components.protocol import ROLES

_WAIT = 2.0


async def check_ports(topology: Topology) -> list[Finding]:
    """A finding for each port. One that our own stack has is as it should be; so is one that ``up`` would replace."""
    embedded = not topology.nats.servers and not topology.etcd.endpoints
    found = [(each, check_port(*each)) for each in listening(topology, ROLES, embedded, "127.0.0.1")]
    servers_are_ours = embedded and any(port.level == "fail" for _, port in found) and await _runs_here(topology)
    return [
        port if port.level == "ok" else await _used(topology, *each, port, servers_are_ours=servers_are_ours)
        for each, port in found
    ]


async def _used(
    topology: Topology, host: str, port: int, what: str, setting: str, problem: Finding, *, servers_are_ours: bool
) -> Finding:
    section, key = setting.split(".")
    ours = await _is_frontend(host, port) if section == "frontend" else servers_are_ours
    if ours:
        return Finding(problem.check, "ok", f"{what} of the stack that runs here")
    if section != "frontend" and key not in getattr(topology, section).model_fields_set:
        return Finding(problem.check, "ok", f"in use by something else: `triptych up` takes a free one for {what}")
    return problem


async def _runs_here(topology: Topology) -> bool:
    """Whether NATS and etcd are where the settings say, with instances of this machine in them."""
    servers = [await check_nats(topology.nats.addresses[0]), *await check_etcd(topology.etcd.addresses[0])]
    if any(each.check in ("nats", "etcd") and each.level == "fail" for each in servers):
        return False
    try:
        return bool((await ask_all(topology, ROLES, this_host(), _WAIT)).reports)
    except ConnectionError:
        return False


async def _is_frontend(host: str, port: int) -> bool:
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        answer = await ask(here, port, f"GET /metrics HTTP/1.0\r\nHost: {here}\r\n\r\n".encode())
    except (OSError, TimeoutError):
        return False
    return b"\ntriptych_" in answer
