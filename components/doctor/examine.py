"""All checks in order: first what the rest stands on."""

from __future__ import annotations

import asyncio

from components.config import Topology
from components.doctor.deployment import check_deployment
from components.doctor.finding import Finding
from components.doctor.lanes import check_lanes
from components.doctor.model import check_model
from components.doctor.node import (
    check_clock,
    check_environment,
    check_gpus,
    check_memlock,
    check_nixl,
    check_shm,
)
from components.doctor.servers import check_etcd, check_nats
from components.nixl_connect import cuda


def ucx_settings(topology: Topology) -> dict[str, str]:
    """What the topology makes the connector set."""
    return {f"UCX_{name}": value for name, value in topology.ucx.items()}


async def examine_node(topology: Topology, *, lanes: bool = True) -> list[Finding]:
    """This machine alone."""
    driver = cuda.driver()
    gpus = 0 if driver is None else driver.device_count
    nixl = await asyncio.to_thread(check_nixl)
    found = [
        nixl,
        check_gpus(gpus or None),
        check_environment(),
        check_memlock(),
        check_shm(),
        check_clock(),
        await asyncio.to_thread(check_model, topology),
    ]
    if lanes and nixl.level == "ok":
        found += await check_lanes(gpus, ucx_settings(topology))
    return found


async def examine_deployment(topology: Topology) -> list[Finding]:
    """The servers that the topology names, and every role of it, running."""
    servers: list[Finding] = []
    for address in topology.nats.addresses:
        servers.append(await check_nats(address))
    for endpoint in topology.etcd.addresses:
        servers += await check_etcd(endpoint)
    if any(each.level == "fail" for each in servers):
        return servers
    return [*servers, *await check_deployment(topology)]
