"""The peers that calls are open with, one link for each, on either side: what we tell them, and that they live."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from components.messaging.heart import BEAT, GONE_BEATS, SETTLE_BEATS, STUCK_BEATS, Death, Heart, Pulse
from components.messaging.metrics import LOST
from components.messaging.seldom import Seldom
from components.messaging.wire import Wire

log = logging.getLogger(__name__)

CALLEE_BEATS = 6
"""A callee that gives no sign of life for so many beats is lost."""

CALLER_BEATS = 12
"""The same for a caller. Nobody waits for that news, so a caller that only stalls gets longer."""

_lost = Seldom(log)


@dataclass(eq=False)
class Link:
    """``beat`` returns what to tell the peer at every beat; ``lost`` is called once, with the reason, if it dies.

    ``to`` is the subject on which the peer hears us; ``token`` names this link in the reply subject of what we send,
    which is where NATS tells us that nobody listens.
    """

    to: str
    token: str
    patience: int
    beat: Callable[[], bytes]
    lost: Callable[[str], None]
    pulse: Pulse = field(init=False)
    _refused: bool = field(default=False, init=False)
    _refused_beats: int = field(default=0, init=False)

    def heard(self) -> None:
        """A frame came from the peer."""
        self.pulse.silent = 0

    def refused(self) -> None:
        """NATS had nobody to give our frame to."""
        self._refused = True

    def tick(self) -> bool:
        """One beat has passed; returns whether nobody has listened for too long: the service has ended."""
        self._refused_beats = self._refused_beats + 1 if self._refused else 0
        self._refused = False
        return self._refused_beats >= GONE_BEATS

    def forgive(self) -> None:
        """Start counting anew: NATS was away."""
        self._refused_beats = 0
        self._refused = False

    def why(self, death: Death) -> str:
        return {
            Death.GONE: "nobody listens there",
            Death.SILENT: f"no sign of life for {self.patience} beats ({self.patience * BEAT:g} s)"
            " in which we heard ourselves",
            Death.STUCK: f"its process lives, but its event loop has stood still for {STUCK_BEATS * BEAT:g} s",
        }[death]


class Links:
    """All links of one bus."""

    def __init__(self, wire: Wire, heart: Heart) -> None:
        self._wire = wire
        self._heart = heart
        self._links: dict[str, Link] = {}
        self._numbers = itertools.count()
        self._grace = 0

    def __len__(self) -> int:
        return len(self._links)

    def open(self, to: str, patience: int, *, beat: Callable[[], bytes], lost: Callable[[str], None]) -> Link:
        link = Link(to, f"l{next(self._numbers)}", patience, beat, lost)
        link.pulse = self._heart.watch(to, patience, lambda death: self._dead(link, death))
        self._links[link.token] = link
        return link

    def close(self, link: Link) -> None:
        self._heart.unwatch(link.pulse)
        self._links.pop(link.token, None)

    def send(self, link: Link, frame: bytes) -> None:
        """Send to the peer, and have NATS say so if nobody is there."""
        self._wire.send(link.to, frame, reply=f"{self._wire.inbox}.{link.token}")

    def refused(self, token: str) -> None:
        """NATS says that nobody listens where this link sends to."""
        link = self._links.get(token)
        if link is not None and not self.settling:
            link.refused()

    @property
    def settling(self) -> bool:
        """Whether NATS came back so recently that a missing subscriber may only be slower to return than we were."""
        return self._grace > 0

    def reconnected(self) -> None:
        """NATS is back: what was under way may be lost."""
        self._grace = SETTLE_BEATS
        for link in list(self._links.values()):
            link.forgive()
            self.send(link, link.beat())

    def tick(self) -> None:
        """One beat has passed: send ours, and give up those that nobody listens for."""
        self._grace = max(0, self._grace - 1)
        for link in list(self._links.values()):
            if link.tick():
                self._dead(link, Death.GONE)
            else:
                self.send(link, link.beat())

    def _dead(self, link: Link, death: Death) -> None:
        if link.token not in self._links:
            return  # The last call with it has just ended.
        self.close(link)
        why = link.why(death)
        LOST.labels(death).inc()
        _lost.warning("%s is dead: %s", link.to, why)
        link.lost(why)
