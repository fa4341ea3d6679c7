"""The other agents this one knows: loaded once a generation, dropped when they die. Owner thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .agent import Agent
from .errors import BadRecord, PeerUnknown
from .record import AnnouncedRegion, RdmaMetadata


class Peer:
    """One generation of one peer. ``regions`` is what it announced and is loaded here; ``seen`` are the regions of
    *ours* that it has shown to have loaded; ``introduced`` says that it has answered us, so it has our connection
    metadata."""

    __slots__ = ("identity", "introduced", "regions", "seen")

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.regions: dict[int, AnnouncedRegion] = {}
        self.seen: set[int] = set()
        self.introduced = False


class Peers:
    def __init__(self, agent: Agent, lost: Callable[[Peer, str], None]) -> None:
        self._agent = agent
        self._lost = lost
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
        for region, metadata in missing:
            self._load(record.identity, metadata)
            peer.regions[region.id] = region.model_copy(update={"nixl_metadata": None})
        self._remember(peer)
        return peer

    def introduced(self, identity: str, metadata: bytes) -> Peer | None:
        """A peer that speaks to us; loaded from its own connection metadata if it is new. None when that is not
        possible, so that it cannot be answered."""
        peer = self._known.get(identity)
        if peer is not None:
            return peer
        if not metadata:
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
