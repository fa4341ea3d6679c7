"""The other agents this one knows: loaded once a generation, dropped when they die. Owner thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .agent import Agent
from .errors import BadRecord, PeerUnknown
from .record import AnnouncedRegion, RdmaMetadata

MAX_REGIONS = 2048
"""Of one peer, before all of them are unloaded. NIXL and this table keep about 2 KiB for each, dead or alive."""
HARD_REGIONS = 4 * MAX_REGIONS
"""Of one peer, whatever uses them. No record brings it further."""
MAX_PEERS = 4096
"""That introduced themselves: anybody may. Who is gone is dropped by the next ping."""
SILENT_S = 3.0
"""A peer that knows us sends a word each second. One that was silent for so long may have forgotten us."""


class Peer:
    """One generation of one peer. ``regions`` is what it announced and is loaded here, ``spans`` which of them has that
    memory and with what keys; ``seen`` are the regions of *ours* that it has shown to have loaded, as far as it was
    ``heard`` lately; ``introduced`` says that it has answered us, so it has our connection metadata."""

    __slots__ = ("_ahead", "heard", "identity", "introduced", "regions", "seen", "spans")

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.regions: dict[int, AnnouncedRegion] = {}
        self.spans: dict[tuple[str, int, int], tuple[int, int]] = {}
        """(device, ptr, size) → (id, hash of the metadata)"""
        self.seen: set[int] = set()
        self.heard = time.monotonic()
        self.introduced = False
        self._ahead: float | None = None

    def granted(self, clock: float, claimed: float) -> None:
        """Its clock said ``clock`` when it answered what we said at ``claimed`` by ours, so it is not further ahead of
        ours than this. Clocks of two machines run alike, but stand anyhow."""
        self._ahead = clock - claimed

    def left(self, until: float) -> float:
        """Seconds that its clock has at least until that time; none before its first grant."""
        return until - (time.monotonic() + self._ahead) if self._ahead is not None else 0.0

    def has(self) -> frozenset[int]:
        """Regions of ours whose metadata it need not be sent again."""
        return frozenset(self.seen) if time.monotonic() - self.heard < SILENT_S else frozenset()


class Peers:
    def __init__(self, agent: Agent, lost: Callable[[Peer, str], None], busy: Callable[[Peer], bool]) -> None:
        """``busy``: is there a transfer that uses what is loaded of the peer?"""
        self._agent = agent
        self._lost = lost
        self._busy = busy
        self._known: dict[str, Peer] = {}
        self.loads = 0

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._known.values()))

    def get(self, identity: str) -> Peer | None:
        return self._known.get(identity)

    def from_record(self, record: RdmaMetadata) -> Peer:
        """The peer that a record names, with all its regions loaded. Raises ``PeerUnknown`` when metadata is missing
        here and in the record, ``BadRecord`` when the record contradicts what the peer announced before."""
        peer = self._known.get(record.identity) or Peer(record.identity)
        missing: list[tuple[AnnouncedRegion, bytes]] = []
        for region in record.regions:
            known = peer.regions.get(region.id)
            if known is None:
                metadata = region.metadata_bytes()
                if metadata is None:
                    raise PeerUnknown(f"region {region.id} of {record.identity} is not loaded, nor in the record")
                missing.append((region, metadata))
            elif (known.device, known.ptr, known.size) != (region.device, region.ptr, region.size):
                raise BadRecord(f"region {region.id} of {record.identity} is not what was announced before")
        if len(missing) == len(record.regions) and self._outgrown(peer, missing) and not self._busy(peer):
            self._unload(peer)
        if len(peer.regions) + len(missing) > HARD_REGIONS:
            if not self._busy(peer):
                self.drop(peer, "it announced too much memory")  # it finds itself forgotten, and sends all it has
            raise PeerUnknown(f"{record.identity} has announced too many regions: ask for a record with metadata later")
        for region, metadata in missing:
            span, keys = (region.device, region.ptr, region.size), hash(metadata)
            before = peer.spans.get(span)
            if before is None or before[1] != keys:
                self._load(record.identity, metadata)
            if before is not None:
                # No two live regions have the same memory: that one is gone.
                peer.regions.pop(before[0], None)
            peer.spans[span] = (region.id, keys)
            peer.regions[region.id] = region.model_copy(update={"nixl_metadata": None})
        self._remember(peer)
        return peer

    def _outgrown(self, peer: Peer, missing: list[tuple[AnnouncedRegion, bytes]]) -> bool:
        """Too many regions, or new keys for memory that NIXL has keys of: it would go on to use the old ones."""
        if len(peer.regions) + len(missing) > MAX_REGIONS:
            return True
        known = ((peer.spans.get((r.device, r.ptr, r.size)), hash(metadata)) for r, metadata in missing)
        return any(before is not None and before[1] != keys for before, keys in known)

    def _unload(self, peer: Peer) -> None:
        """Unload what a peer announced: NIXL can only do that for all of it. It stays a peer, and is introduced anew,
        from which it learns that it has to send metadata again."""
        self._agent.drop_peer(peer.identity)
        peer.regions.clear()
        peer.spans.clear()
        peer.introduced = False

    def forget_region(self, id: int) -> None:
        """A region of ours is gone."""
        for peer in self._known.values():
            peer.seen.discard(id)

    def introduced(self, identity: str, metadata: bytes) -> Peer | None:
        """A peer that speaks to us; loaded from its own connection metadata if it is new. None when that is not
        possible, so that it cannot be answered."""
        peer = self._known.get(identity)
        if peer is not None:
            return peer
        if not metadata or len(self._known) >= MAX_PEERS:
            return None
        self._load(identity, metadata)
        peer = Peer(identity)
        self._remember(peer)
        return peer

    def drop(self, peer: Peer, why: str) -> None:
        """Forget a peer: its operations fail, its metadata is unloaded. A later record loads it anew."""
        if self._known.pop(peer.identity, None) is not None:
            self._lost(peer, why)
            self._agent.drop_peer(peer.identity)

    def close(self) -> None:
        """Disconnect from everybody: a peer that leaves without it can poison the other side's connection."""
        for identity in list(self._known):
            self._agent.drop_peer(identity)
        self._known.clear()

    def _load(self, identity: str, metadata: bytes) -> None:
        name = self._agent.load_peer(metadata)
        self.loads += 1
        if name != identity:
            if name not in self._known and name != self._agent.name:
                self._agent.drop_peer(name)
            raise BadRecord(f"agent metadata of {name!r} was given for {identity!r}")

    def _remember(self, peer: Peer) -> None:
        # An older generation of the same name is not dropped here: a record alone must not be able to cut a live
        # peer off. The next ping finds out whether it is gone.
        self._known.setdefault(peer.identity, peer)
