"""A panel's data plane, as the topology wants it."""

from __future__ import annotations

from components import background
from components.config import Topology
from components.nixl_connect import Connector


def open_connector(topology: Topology, name: str) -> Connector:
    """Not connected yet: the agent is made by the first operation. Use it as an async context manager."""
    return Connector(name, backends=topology.transfer.backends, ucx=topology.ucx, on_failure=background.fail)


def held(connector: Connector) -> dict[str, int]:
    """What the data plane holds for requests; all zero when none runs."""
    counters = connector.counters()
    return {
        "leases": counters.leases,
        "transfers": counters.in_flight,
        "handles": counters.handles,
        "quarantined": counters.quarantined,
    }
