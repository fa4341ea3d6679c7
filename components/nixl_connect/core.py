"""All state that the owner thread owns, and the pump it turns: notifications in, transfers on, peers checked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from .agent import Agent
from .counters import Counters, Tally, Totals
from .device import Device
from .errors import BadRecord, TransferError
from .lease import Leases
from .owner import Timer
from .peers import Peer, Peers
from .registration import Registry
from .transfer import Transfers
from .wire import KEY_BYTES, Kind, Message, decode, encode

logger = logging.getLogger(__name__)
PING_S = 1.0
"""How often each peer is sent a word: the only way to learn that a silent one is gone."""


class Core:
    """Made on the owner thread, where the agent must be made. ``identity`` is ``name@generation``."""

    def __init__(
        self,
        identity: str,
        backends: Sequence[str],
        device: Device | None,
        ucx: Mapping[str, str],
        at: Callable[[float, Callable[[], None]], Timer],
        submit: Callable[[Callable[[], None]], bool],
        after: Callable[[Callable[[], object]], None],
    ) -> None:
        self.tally = Tally()
        self.agent = Agent(identity, backends, device, ucx)
        self.registry = Registry(self.agent, submit, lambda id: self.peers.forget_region(id))
        self.peers = Peers(self.agent, self._peer_lost, lambda peer: self.transfers.uses(peer))
        self.leases = Leases(self.tally, at, self.send)
        self.transfers = Transfers(self.agent, self.tally, at, self.send, after, self.peers.drop)
        self._at = at
        self._submit = submit
        self._ping_timer = at(time.monotonic() + PING_S, self._ping)

    def send(self, identity: str, message: Message) -> bool:
        """Notify a peer. False when it is gone; what that means for others happens right after, not inside this
        call."""
        try:
            self.agent.notify(identity, encode(message))
        except TransferError as error:
            peer = self.peers.get(identity)
            if peer is not None:
                why = str(error)
                self._submit(lambda: self.peers.drop(peer, why))
            return False
        return True

    def poll(self) -> bool:
        happened = False
        try:
            received = self.agent.notifications()
        except BadRecord as error:
            logger.warning("%s", error)
            self.tally.ignored_notifications += 1
            received = {}
        for sender, messages in received.items():
            for data in messages:
                happened = self._receive(sender, data) or happened
        return self.transfers.poll() or happened

    def patience(self) -> tuple[float, float]:
        if self.transfers.moving:
            return 1 / 64, 200e-6
        if self.transfers.in_flight or self.leases.claims:
            return 1 / 8, 500e-6
        if self.leases.live:
            return 1 / 16, 30e-3
        return 1.0, 50e-3

    def counters(self, pool_bytes: int, pool_used: int) -> Counters:
        tally = self.tally
        return Counters(
            leases=self.leases.live,
            quarantined=self.leases.quarantined + self.transfers.quarantined,
            in_flight=self.transfers.in_flight,
            handles=self.transfers.handles,
            registrations=len(self.registry),
            registered_bytes=self.registry.bytes,
            registered_total=self.registry.registered_total,
            peers=len(self.peers),
            peer_loads_total=self.peers.loads,
            peers_lost_total=tally.peers_lost,
            pool_bytes=pool_bytes,
            pool_used_bytes=pool_used,
            ignored_notifications_total=tally.ignored_notifications,
            transfers={flow: Totals(t.transfers, t.bytes, t.seconds) for flow, t in tally.flows.items()},
            exposures_total=dict(tally.exposures),
            refused_total=dict(tally.refused),
        )

    def close(self) -> None:
        """End every operation. What is in quarantine goes on until ``idle``."""
        self._ping_timer.cancel()
        self.transfers.close()
        self.leases.close()

    def idle(self) -> bool:
        return not len(self.transfers) and not len(self.leases)

    def abandon(self, why: str) -> None:
        """The agent ends here: release what nobody ended, disconnect, unregister."""
        self._ping_timer.cancel()
        self.transfers.abandon(why)
        self.leases.abandon(why)
        try:
            self.peers.close()
        finally:
            self.registry.close()
            self.agent.close()

    def _receive(self, sender: str, data: bytes) -> bool:
        """False for a mere sign of life: more need not be expected soon after it."""
        message = decode(data)
        acted = False
        if message is not None:
            try:
                acted = self._dispatch(sender, message)
            except Exception:
                # As good as a message that was lost, which both sides live with. One word must not end everything.
                logger.exception("a %s from %s could not be acted on", message.kind.name, sender)
        if not acted:
            self.tally.ignored_notifications += 1
        return message is None or message.kind is not Kind.PING

    def _dispatch(self, sender: str, message: Message) -> bool:
        """Act on one message. False for what nobody here waits for: a stranger's, a late one, a second one."""
        if message.kind is Kind.CLAIM:
            # The name inside and NIXL's own notion of the sender must agree, or a grant would go to somebody else.
            if message.name != sender:
                return False
            try:
                peer = self.peers.introduced(sender, message.metadata)
            except TransferError:
                return False
            if peer is not None:
                peer.heard = time.monotonic()
                if message.metadata:
                    peer.seen.clear()  # it knows us anew
                self.leases.claim(message, peer)
            return peer is not None
        known = self.peers.get(sender)
        if known is None:
            return False
        known.heard = time.monotonic()
        match message.kind:
            case Kind.GRANT:
                return self.transfers.granted(message, known)
            case Kind.REFUSE | Kind.REVOKE:
                return self.transfers.refused(message, known)
            case Kind.DONE:
                return self.leases.done(message, known)
            case Kind.END:
                return self.leases.ended(message, known)
            case _:
                return True

    def _ping(self) -> None:
        for peer in self.peers:
            self.send(peer.identity, Message(Kind.PING, bytes(KEY_BYTES)))
        self._ping_timer = self._at(time.monotonic() + PING_S, self._ping)

    def _peer_lost(self, peer: Peer, why: str) -> None:
        self.tally.peers_lost += 1
        self.transfers.peer_lost(peer, why)
        self.leases.peer_lost(peer, why)
