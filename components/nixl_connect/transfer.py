"""The active side: transfers this process makes, from the claim to the last byte. Owner thread only.

A READ is posted together with its claim, once the peer's clock is known, and counts when both the bytes and the grant
are here: no round trip is added. A WRITE waits for the grant, all prepared: bytes that land in memory which has gone
back to its owner cannot be taken back.
A transfer that was posted cannot be recalled (NIXL's release does not stop a NIC), so one that ends early stays in
quarantine, with its buffers held, until NIXL says that it is terminal.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable

from .agent import Agent, Progress
from .counters import Flow, Tally
from .device import Device
from .errors import (
    BackendFailed,
    BadRecord,
    Cancelled,
    ConnectorClosed,
    DeadlineExceeded,
    LeaseExpired,
    PeerLost,
    RecordConsumed,
    TransferError,
    typed,
)
from .lanes import LaneWatch
from .lease import Front
from .moves import Move, Mover
from .owner import Timer
from .parts import parts, spans
from .peers import Peer
from .record import RdmaMetadata, host_id
from .registration import Hold
from .states import OperationKind, OperationStatus
from .wire import Kind, Message, Reason

logger = logging.getLogger(__name__)
EARLY_READ_S = 1.0
"""A READ is posted before its grant only while the record has that much lease left, by the exposer's clock: reading
memory that its owner has unregistered would break the connection for everybody else on it. So the first READ from a
peer, whose clock is not known yet, waits for its grant."""
LARGE_READ = 16 << 20
"""Bytes that take longer than a claim and its grant, between two GPUs."""
RESEND_S = 0.1
"""A claim without an answer is sent again, with our connection metadata: the peer may have forgotten us."""

_REFUSALS: dict[Reason, Callable[[str], TransferError]] = {
    Reason.EXPIRED: LeaseExpired,
    Reason.CONSUMED: RecordConsumed,
    Reason.CANCELLED: Cancelled,
    Reason.DEADLINE: LeaseExpired,
}


class Transfer:
    def __init__(
        self,
        number: int,
        record: RdmaMetadata,
        peer: Peer,
        hold: Hold,
        deadline: float,
        front: Front,
        lane: str,
        staged: bool,
    ) -> None:
        self.number, self.record, self.peer, self.hold = number, record, peer, hold
        self.buffers = list(hold.buffers)
        self.same_host = record.host == host_id()
        self.lane, self.size = lane, record.size
        self.deadline, self.front, self.kind = deadline, front, record.operation_kind
        self.key = bytes.fromhex(record.notification_key)
        self.started = time.monotonic()
        self.staged = staged
        self.granted = False
        self.over = False
        self.claimed = False
        self.reason = Reason.FAILED
        """What the peer is told if it ends without completing."""
        self.unposted: set[int] = set(range(len(self.buffers)))
        self.prepared: list[tuple[Move, int]] = []
        """What may begin with the grant, and how many of the buffers each is"""
        self.moves: dict[Move, int] = {}
        """What is under way, and how many of the buffers each is"""
        self.landed = 0
        """Buffers whose bytes have all arrived"""
        self.timers: list[Timer] = []


class Transfers:
    def __init__(
        self,
        agent: Agent,
        tally: Tally,
        at: Callable[[float, Callable[[], None]], Timer],
        send: Callable[[str, Message], bool],
        after: Callable[[Callable[[], object]], None],
        peer_broke: Callable[[Peer, str], None],
    ) -> None:
        self._agent, self._tally, self._at, self._send = agent, tally, at, send
        self._after = after
        self.mover = Mover(agent)
        self._peer_broke = peer_broke
        self._transfers: dict[tuple[bytes, int], Transfer] = {}
        self._numbers = itertools.count(1)
        self._introduction = agent.metadata()
        self._watch = LaneWatch()

        self._moving: dict[Move, Transfer] = {}
        """Moves that are not known to be over → whose they are"""
        self.in_flight = 0
        """Transfers whose operation has not ended."""
        self.handles = 0
        """Moves that are not released."""

    @property
    def quarantined(self) -> int:
        return len(self._transfers) - self.in_flight

    @property
    def moving(self) -> bool:
        return bool(self._moving)

    def __len__(self) -> int:
        return len(self._transfers)

    def uses(self, peer: Peer) -> bool:
        return any(transfer.peer is peer for transfer in self._transfers.values())

    # what the application does

    def begin(
        self,
        record: RdmaMetadata,
        peer: Peer,
        hold: Hold,
        deadline: float,
        front: Front,
        lane: str,
        staged: bool,
    ) -> Transfer:
        """Claim, prepare while the claim is on its way, and post what may be posted. The transfer releases ``hold``
        when nothing can touch the buffers. What raises on the way ends the transfer, not this call."""
        transfer = Transfer(next(self._numbers), record, peer, hold, deadline, front, lane, staged)
        self._transfers[transfer.key, transfer.number] = transfer
        self.in_flight += 1
        try:
            self._launch(transfer)
        except Exception as error:  # noqa: BLE001 - whatever it was: this transfer pays for it, no other
            self._broke(transfer, None, error)
        return transfer

    def _launch(self, transfer: Transfer) -> None:
        record = transfer.record
        transfer.front.moved(OperationStatus.INITIALIZED)
        transfer.timers.append(self._at(transfer.deadline, lambda: self._late(transfer)))
        early = transfer.kind is OperationKind.READ and transfer.peer.left(record.lease_until) > EARLY_READ_S
        # Whichever takes longer goes first: the bytes, or the claim's way there and back. Only on a GPU do bytes move
        # by themselves: host memory is copied, or written to a socket, by the call that posts.
        bytes_first = early and transfer.size >= LARGE_READ and not transfer.buffers[0].device.is_host
        if not bytes_first:
            self._claim(transfer, again=False)
        if not transfer.staged:
            self._prepare(transfer, list(range(len(transfer.buffers))))
        if early:
            self._post_prepared(transfer)
        if bytes_first:
            self._claim(transfer, again=False)

    def post(self, transfer: Transfer, indices: list[int]) -> None:
        """Staged: these buffers are ready. Posted now if the memory is granted, else as soon as it is."""
        fresh = [index for index in indices if index in transfer.unposted]
        if transfer.over or not fresh:
            return
        try:
            self._prepare(transfer, fresh)
            if transfer.granted:
                self._post_prepared(transfer)
        except Exception as error:  # noqa: BLE001 - as above
            self._broke(transfer, None, error)

    def cancel(self, transfer: Transfer) -> None:
        if not transfer.over:
            self._end(transfer, OperationStatus.CANCELLED, Cancelled("cancelled by this side"))

    def close(self) -> None:
        for transfer in list(self._transfers.values()):
            if not transfer.over:
                self._end(transfer, OperationStatus.CANCELLED, ConnectorClosed("the connector was closed"))

    def abandon(self, why: str) -> None:
        """The agent goes: give up what NIXL never ended."""
        for transfer in list(self._transfers.values()):
            error = ConnectorClosed(why)
            try:
                if not transfer.over:
                    self._end(transfer, OperationStatus.ERRORED, error)
                for move in list(transfer.moves):
                    self._release(move, transfer)
                self._settle(transfer)
            except Exception:
                logger.exception("a transfer could not be ended in order")
                transfer.front.ended(OperationStatus.ERRORED, error, released=False)
        self.mover.close()

    # what the peer says

    def granted(self, message: Message, peer: Peer) -> bool:
        transfer = self._transfers.get((message.key, message.claim))
        if transfer is None or transfer.peer is not peer:
            return False
        peer.introduced = True
        peer.granted(message.clock, transfer.started)
        if not transfer.over and not transfer.granted:
            transfer.granted = True
            transfer.front.moved(OperationStatus.IN_PROGRESS)
            self._post_prepared(transfer)
            self._maybe_complete(transfer)
        return True

    def refused(self, message: Message, peer: Peer) -> bool:
        transfer = self._transfers.get((message.key, message.claim))
        if transfer is None or transfer.peer is not peer or message.reason is None:
            return False
        peer.introduced = True
        if not transfer.over:
            transfer.claimed = message.kind is Kind.REVOKE  # a refused claim does not exist at the peer
            name = message.reason.name.lower().replace("_", " ")
            error = _REFUSALS.get(message.reason, BadRecord)(f"{peer.identity} refused the claim: {name}")
            cancelled = message.kind is Kind.REVOKE or message.reason is Reason.CANCELLED
            if cancelled:
                error = Cancelled(f"{peer.identity} took the buffer back")
            self._end(transfer, OperationStatus.CANCELLED if cancelled else OperationStatus.ERRORED, error)
        return True

    def peer_lost(self, peer: Peer, why: str) -> None:
        for transfer in [item for item in self._transfers.values() if item.peer is peer]:
            transfer.claimed = False
            if not transfer.over:
                self._end(transfer, OperationStatus.ERRORED, PeerLost(f"{peer.identity} is gone: {why}"))

    # progress

    def poll(self) -> bool:
        happened = False
        for move, transfer in list(self._moving.items()):
            if move in self._moving and self._look(move, transfer):
                happened = True
        return happened

    def _look(self, move: Move, transfer: Transfer) -> bool:
        """True when the move is over, and what follows from it has been done."""
        try:
            progress = move.check()
        except TransferError as error:
            self._broke(transfer, move, error)
            return True
        except Exception as error:  # noqa: BLE001 - what it does now nobody knows: its buffers stay in quarantine
            self._moving.pop(move)
            self._broke(transfer, None, error)
            return True
        if progress is Progress.MOVING:
            return False
        if progress is Progress.FAILED:
            self._broke(transfer, move, BackendFailed("the backend reports a failed transfer"))
            return True
        transfer.landed += transfer.moves[move]
        self._release(move, transfer)
        if transfer.over:
            self._settle(transfer)
        else:
            self._maybe_complete(transfer)
        return True

    def _broke(self, transfer: Transfer, move: Move | None, error: Exception) -> None:
        """``move``, if given, is over."""
        if not isinstance(error, TransferError):
            logger.error("a transfer to or from %s failed unexpectedly", transfer.peer.identity, exc_info=error)
        if move is not None:
            self._release(move, transfer)
        if not transfer.over:
            self._end(transfer, OperationStatus.ERRORED, typed(error))
        else:
            self._settle(transfer)
        if isinstance(error, PeerLost):
            self._peer_broke(transfer.peer, str(error))

    def _claim(self, transfer: Transfer, *, again: bool) -> None:
        if transfer.over or transfer.granted:
            return
        now = time.monotonic()
        metadata = b"" if transfer.peer.introduced and not again else self._introduction
        message = Message(
            Kind.CLAIM,
            transfer.key,
            transfer.number,
            seal=bytes.fromhex(transfer.record.seal),
            seconds=max(transfer.deadline - now, 1e-3),
            metadata=metadata,
            name=self._agent.name,
        )
        transfer.claimed = True
        if self._send(transfer.peer.identity, message):
            pause = RESEND_S if not again else 10 * RESEND_S
            transfer.timers.append(self._at(now + pause, lambda: self._claim(transfer, again=True)))

    def _prepare(self, transfer: Transfer, indices: list[int]) -> None:
        transfer.unposted.difference_update(indices)
        identity = transfer.peer.identity
        for part in parts(transfer.buffers, transfer.record, indices):
            if transfer.over:
                return
            local, remote = spans(transfer.hold, transfer.record, part)
            try:
                move = self.mover.prepare(
                    transfer.kind, local, part.local_device, remote, part.remote_device, identity, transfer.same_host
                )
            except TransferError as error:
                self._broke(transfer, None, error)
                return
            self.handles += 1
            transfer.prepared.append((move, len(part.indices)))

    def _post_prepared(self, transfer: Transfer) -> None:
        while transfer.prepared:
            move, buffers = transfer.prepared.pop(0)
            transfer.moves[move] = buffers
            self._moving[move] = transfer
            try:
                move.begin()
            except TransferError as error:
                self._broke(transfer, move, error)
            except Exception as error:  # noqa: BLE001 - it may have begun: its buffers stay in quarantine
                self._moving.pop(move)
                self._broke(transfer, None, error)
            else:
                self._look(move, transfer)

    def _maybe_complete(self, transfer: Transfer) -> None:
        if transfer.over or not transfer.granted or transfer.landed < len(transfer.buffers):
            return
        # A process that was stopped may find its bytes landed long after the peer took the memory back.
        if time.monotonic() > transfer.deadline:
            self._late(transfer)
            return
        self._end(transfer, OperationStatus.COMPLETE, None)

    def _late(self, transfer: Transfer) -> None:
        if not transfer.over:
            transfer.peer.introduced = transfer.peer.introduced and transfer.granted
            what = "the bytes did not arrive" if transfer.granted else "the peer did not answer"
            self._end(transfer, OperationStatus.ERRORED, DeadlineExceeded(f"{what} in time"))

    def _end(self, transfer: Transfer, status: OperationStatus, error: TransferError | None) -> None:
        transfer.over = True
        self.in_flight -= 1
        for timer in transfer.timers:
            timer.cancel()
        transfer.timers.clear()
        while transfer.prepared:
            self._release(transfer.prepared.pop()[0], transfer)
        for move in transfer.moves:
            move.stop()
        seconds = time.monotonic() - transfer.started
        outcome = "complete" if error is None else error.code
        self._tally.transfer(
            Flow(transfer.kind.name.lower(), transfer.lane, outcome), transfer.size if error is None else 0, seconds
        )
        if error is None:
            # A staged operation waits for whoever posts its parts: its time says nothing about the lane.
            if transfer.same_host and not transfer.staged:
                devices = (transfer.buffers[0].device, Device(transfer.record.descriptors[0].device))
                self._watch.saw(transfer.kind, transfer.lane, devices, transfer.size, seconds)
            transfer.claimed = False
        elif isinstance(error, Cancelled | ConnectorClosed):
            transfer.reason = Reason.CANCELLED
        elif isinstance(error, DeadlineExceeded):
            transfer.reason = Reason.DEADLINE
        # The memory first, then the word of it: who hears of the end finds the buffers free.
        free = self._free(transfer)
        transfer.front.ended(status, error, released=free)
        if free:
            transfer.front.released()
        if error is None:
            identity, message = transfer.peer.identity, Message(Kind.DONE, transfer.key, transfer.number)
            self._after(lambda: self._send(identity, message))

    def _settle(self, transfer: Transfer) -> None:
        """After the end: leave quarantine if that is possible now."""
        if self._free(transfer):
            transfer.front.released()

    def _free(self, transfer: Transfer) -> bool:
        """Tell the peer and give the buffers back, unless NIXL may still touch them. True when that happened now."""
        if transfer.moves or self._transfers.pop((transfer.key, transfer.number), None) is None:
            return False
        if transfer.claimed:
            self._send(transfer.peer.identity, Message(Kind.END, transfer.key, transfer.number, transfer.reason))
        transfer.hold.release()
        return True

    def _release(self, move: Move, transfer: Transfer) -> None:
        transfer.moves.pop(move, None)
        self._moving.pop(move, None)
        self.handles -= 1
        try:
            move.release()
        except TransferError:
            # Terminal, yet not freed: NIXL keeps it until the agent goes. Nothing of ours depends on it.
            self._tally.refused["handle_release"] = self._tally.refused.get("handle_release", 0) + 1
