"""The passive side: exposed buffers, who holds a claim on them, and when they come back. Owner thread only.

A buffer is exposed under a lease. A peer *claims* it before what it moves can count; a claim outlives the lease, up to
the time the peer said it needs. Outcome and memory are two things: the outcome is decided once, and early if need be;
the memory comes back only when no claim is left. A reader past its own deadline never counts what it read, so a late
READ claim simply lapses. A late WRITE claim does not: a stopped writer may go on. Its buffer stays in quarantine until
that writer says it has ended, or is gone.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from .counters import Tally
from .errors import Cancelled, ConnectorClosed, DeadlineExceeded, LeaseExpired, PeerLost, TransferError
from .owner import Timer
from .peers import Peer
from .record import RdmaMetadata
from .registration import Hold
from .states import OperationKind, OperationStatus
from .wire import Kind, Message, Reason

logger = logging.getLogger(__name__)
GRACE_S = 1.0
"""How much longer than asked for a claim is held: clocks of two hosts run alike, messages take time."""
MAX_CLAIMS = 4096
"""At once, on a buffer for any number of readers."""
_REMEMBERED = 8192


class Front(Protocol):
    """The operation that the application holds, as the owner thread sees it."""

    def moved(self, status: OperationStatus) -> None: ...

    def ended(self, status: OperationStatus, error: TransferError | None, *, released: bool) -> None: ...

    def released(self) -> None: ...


class Exposure:
    __slots__ = ("claims", "completed", "front", "hold", "key", "lease_until", "over", "readers", "record", "timer")

    def __init__(
        self,
        record: RdmaMetadata,
        hold: Hold,
        lease_until: float,
        readers: int | None,
        front: Front,
    ) -> None:
        self.record, self.hold, self.front = record, hold, front
        self.key = bytes.fromhex(record.notification_key)
        self.lease_until, self.readers = lease_until, readers
        self.claims: dict[tuple[str, int], float] = {}
        """(who, number) → held until, by the monotonic clock"""
        self.completed = 0
        self.over = False
        self.timer: Timer | None = None

    @property
    def is_write(self) -> bool:
        return self.record.operation_kind is OperationKind.WRITE


class Leases:
    def __init__(
        self,
        tally: Tally,
        at: Callable[[float, Callable[[], None]], Timer],
        send: Callable[[str, Message], bool],
    ) -> None:
        self._tally, self._at, self._send = tally, at, send
        self._exposures: dict[bytes, Exposure] = {}
        self._past: OrderedDict[bytes, Reason] = OrderedDict()

        self.live = 0
        """Exposures whose operation has not ended."""
        self.claims = 0
        """Claims that peers hold now."""

    @property
    def quarantined(self) -> int:
        return len(self._exposures) - self.live

    def __len__(self) -> int:
        return len(self._exposures)

    # what the application does

    def expose(self, exposure: Exposure) -> None:
        self._arm(exposure)
        self._exposures[exposure.key] = exposure
        self.live += 1
        exposure.front.moved(OperationStatus.INITIALIZED)

    def renew(self, key: bytes, seconds: float) -> None:
        """Let the lease end that much from now, not earlier than it did. Nothing happens when it is over already."""
        exposure = self._exposures.get(key)
        if exposure is not None and not exposure.over:
            exposure.lease_until = max(exposure.lease_until, time.monotonic() + seconds)
            self._arm(exposure)

    def cancel(self, key: bytes) -> None:
        exposure = self._exposures.get(key)
        if exposure is not None and not exposure.over:
            for who, number in exposure.claims:
                self._send(who, Message(Kind.REVOKE, key, number, Reason.CANCELLED))
            self._end(exposure, OperationStatus.CANCELLED, Cancelled("cancelled by this side"), Reason.CANCELLED)

    def close(self) -> None:
        for exposure in list(self._exposures.values()):
            if not exposure.over:
                for who, number in exposure.claims:
                    self._send(who, Message(Kind.REVOKE, exposure.key, number, Reason.CANCELLED))
                error = ConnectorClosed("the connector was closed")
                self._end(exposure, OperationStatus.CANCELLED, error, Reason.CANCELLED)

    def abandon(self, why: str) -> None:
        """The agent goes: whatever is still claimed is released with it."""
        for exposure in list(self._exposures.values()):
            self.claims -= len(exposure.claims)
            exposure.claims.clear()
            error = ConnectorClosed(why)
            try:
                if not exposure.over:
                    self._end(exposure, OperationStatus.ERRORED, error, Reason.CANCELLED)
                else:
                    self._settle(exposure)
            except Exception:
                logger.exception("an exposed buffer could not be given back")
                exposure.front.ended(OperationStatus.ERRORED, error, released=False)

    # what peers do

    def claim(self, message: Message, peer: Peer) -> None:
        reason = self._objection(message, peer)
        if reason is not None:
            self._tally.refused[reason.name.lower()] = self._tally.refused.get(reason.name.lower(), 0) + 1
            self._send(peer.identity, Message(Kind.REFUSE, message.key, message.claim, reason))
            return
        exposure = self._exposures[message.key]
        claim = (peer.identity, message.claim)
        if claim not in exposure.claims:
            exposure.claims[claim] = time.monotonic() + message.seconds + GRACE_S
            self.claims += 1
            exposure.front.moved(OperationStatus.IN_PROGRESS)
            self._arm(exposure)
        peer.seen.update(region.id for region in exposure.record.regions)
        self._send(peer.identity, Message(Kind.GRANT, message.key, message.claim, clock=time.monotonic()))

    def done(self, message: Message, peer: Peer) -> bool:
        """False when that peer holds no such claim: nobody completes what another one claimed."""
        exposure = self._unclaim(message, peer)
        if exposure is None:
            return False
        exposure.completed += 1
        if exposure.over:
            self._settle(exposure)
        elif exposure.readers is not None and exposure.completed >= exposure.readers:
            self._end(exposure, OperationStatus.COMPLETE, None, Reason.CONSUMED)
        else:
            self._unclaimed(exposure)
        return True

    def ended(self, message: Message, peer: Peer) -> bool:
        exposure = self._unclaim(message, peer)
        if exposure is None:
            return False
        if message.reason is Reason.CANCELLED:
            error: TransferError = Cancelled(f"{peer.identity} cancelled")
        elif message.reason is Reason.DEADLINE:
            error = DeadlineExceeded(f"{peer.identity} did not finish in its time")
        else:
            error = PeerLost(f"{peer.identity} failed to move the bytes")
        self._claim_failed(exposure, error)
        return True

    def peer_lost(self, peer: Peer, why: str) -> None:
        for exposure in list(self._exposures.values()):
            mine = [claim for claim in exposure.claims if claim[0] == peer.identity]
            self._lapse(exposure, mine)
            if mine:
                self._claim_failed(exposure, PeerLost(f"{peer.identity} is gone: {why}"))

    def _unclaim(self, message: Message, peer: Peer) -> Exposure | None:
        """The exposure on which that peer held that claim until now."""
        exposure = self._exposures.get(message.key)
        if exposure is None or (peer.identity, message.claim) not in exposure.claims:
            return None
        self._lapse(exposure, [(peer.identity, message.claim)])
        return exposure

    def _lapse(self, exposure: Exposure, claims: list[tuple[str, int]]) -> None:
        self.claims -= len(claims)
        for claim in claims:
            del exposure.claims[claim]

    def _objection(self, message: Message, peer: Peer) -> Reason | None:
        exposure = self._exposures.get(message.key)
        if exposure is None or exposure.over:
            return self._past.get(message.key, Reason.UNKNOWN)
        if message.seal.hex() != exposure.record.seal:
            return Reason.ALTERED
        if exposure.record.reader not in (None, peer.identity):
            return Reason.NOT_FOR_YOU
        if (peer.identity, message.claim) in exposure.claims:
            return None
        if time.monotonic() >= exposure.lease_until:
            return Reason.EXPIRED
        if len(exposure.claims) >= MAX_CLAIMS:
            return Reason.CONSUMED
        if exposure.readers is not None and exposure.completed + len(exposure.claims) >= exposure.readers:
            return Reason.CONSUMED
        return None

    # what time does

    def _arm(self, exposure: Exposure) -> None:
        if exposure.timer is not None:
            exposure.timer.cancel()
            exposure.timer = None
        times = list(exposure.claims.values())
        if not exposure.over:
            times.append(exposure.lease_until)
        now = time.monotonic()
        ahead = [when for when in times if when > now]
        if exposure.is_write and exposure.over:
            return  # only the writer's word, or its death, ends a late WRITE claim
        if ahead or times:
            exposure.timer = self._at(min(ahead) if ahead else now, lambda: self._time_passed(exposure))

    def _time_passed(self, exposure: Exposure) -> None:
        exposure.timer = None
        now = time.monotonic()
        late = [claim for claim, until in exposure.claims.items() if until <= now]
        if late and exposure.is_write:
            if not exposure.over:
                error = DeadlineExceeded(f"{late[0][0]} did not finish writing in its time")
                self._end(exposure, OperationStatus.ERRORED, error, Reason.DEADLINE)
            return
        self._lapse(exposure, late)
        if late:
            self._claim_failed(exposure, DeadlineExceeded(f"{late[0][0]} did not finish reading in its time"))
        elif not exposure.over:
            self._unclaimed(exposure)

    def _claim_failed(self, exposure: Exposure, error: TransferError) -> None:
        """A claim ended without its bytes. For a sole user that ends the operation; others may still come."""
        if exposure.over:
            self._settle(exposure)
        elif exposure.readers == 1:
            status = OperationStatus.CANCELLED if isinstance(error, Cancelled) else OperationStatus.ERRORED
            self._end(exposure, status, error, Reason.CANCELLED)
        else:
            self._unclaimed(exposure)

    def _unclaimed(self, exposure: Exposure) -> None:
        """Decide what is left to wait for, now that a claim went or time passed."""
        if exposure.claims or time.monotonic() < exposure.lease_until:
            if not exposure.claims:
                exposure.front.moved(OperationStatus.INITIALIZED)
            self._arm(exposure)
        elif exposure.readers is None and exposure.completed:
            self._end(exposure, OperationStatus.COMPLETE, None, Reason.EXPIRED)
        else:
            error = LeaseExpired(f"the lease ended after {exposure.completed} of {exposure.readers or 'any'} readers")
            self._end(exposure, OperationStatus.ERRORED, error, Reason.EXPIRED)

    def _end(self, exposure: Exposure, status: OperationStatus, error: TransferError | None, past: Reason) -> None:
        exposure.over = True
        self.live -= 1
        self._past[exposure.key] = past
        while len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)
        outcome = "complete" if error is None else error.code
        self._tally.exposures[outcome] = self._tally.exposures.get(outcome, 0) + 1
        # The memory first, then the word of it: who hears of the end finds the buffers free.
        free = self._free(exposure)
        exposure.front.ended(status, error, released=free)
        if free:
            exposure.front.released()

    def _settle(self, exposure: Exposure) -> None:
        """After the end: leave quarantine if that is possible now."""
        if self._free(exposure):
            exposure.front.released()

    def _free(self, exposure: Exposure) -> bool:
        """Give the memory back, unless somebody may still touch it. True when that happened now."""
        if exposure.claims:
            self._arm(exposure)
            return False
        if exposure.timer is not None:
            exposure.timer.cancel()
        del self._exposures[exposure.key]
        exposure.hold.release()
        return True
