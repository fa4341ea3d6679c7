"""What the connector counts. Written by the owner thread alone, read by anybody through a snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lanes import Lane


@dataclass(frozen=True, slots=True)
class Flow:
    """Transfers of one kind, lane and outcome, as seen by the active side."""

    kind: str
    """``read`` or ``write``"""
    lane: str
    """``<local memory>-<remote memory>``, such as ``cpu-cuda``; ``+staged`` when it goes through a bounce buffer."""
    outcome: str
    """``complete`` or the error's ``code``"""


@dataclass(slots=True)
class Totals:
    transfers: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Tally:
    flows: dict[Flow, Totals] = field(default_factory=dict)
    exposures: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    ignored_notifications: int = 0
    peers_lost: int = 0

    def transfer(self, flow: Flow, size: int, seconds: float) -> None:
        totals = self.flows.setdefault(flow, Totals())
        totals.transfers += 1
        totals.bytes += size
        totals.seconds += seconds


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot: the gauges are of now, the totals since the connector began."""

    leases: int = 0
    """Exposed buffers whose operation has not ended."""
    quarantined: int = 0
    """Ended operations, on either side, whose memory a transfer may still touch."""
    in_flight: int = 0
    """Active operations that have not ended."""
    handles: int = 0
    """NIXL transfer handles alive."""
    registrations: int = 0
    registered_bytes: int = 0
    registered_total: int = 0
    peers: int = 0
    peer_loads_total: int = 0
    peers_lost_total: int = 0
    pool_bytes: int = 0
    pool_used_bytes: int = 0
    ignored_notifications_total: int = 0
    lanes: tuple[Lane, ...] = ()
    """What the last self-test measured."""
    transfers: dict[Flow, Totals] = field(default_factory=dict)
    exposures_total: dict[str, int] = field(default_factory=dict)
    """Ended exposures by outcome: ``complete`` or the error's code."""
    refused_total: dict[str, int] = field(default_factory=dict)
    """Refused claims by reason."""
