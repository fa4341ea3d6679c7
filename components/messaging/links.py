"""Is the other side still there? One link for each peer that a call is open with, on either side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from components.messaging.wire import Wire

BEAT = 0.25
"""Seconds between heartbeats."""

CALLEE_BEATS = 6
"""A callee silent for so many beats is lost. Counted in our own beats, not in seconds: when this process stalls, the
peer's frames wait unread in the socket, and a clock would take our own silence for theirs."""

CALLER_BEATS = 12
"""The same for a caller. Nobody waits for that news, so a caller that only stalls gets longer."""

REFUSED_BEATS = 2
"""A peer whose subject nobody has subscribed to for so many beats is lost: its process has gone."""


@dataclass(eq=False)
class Link:
    """``beat`` returns the heartbeat to send; ``lost`` is called once, when ``patience`` beats brought no sign of life.

    ``to`` is the subject on which the peer hears us; ``token`` names this link in the reply subject of what we send,
    which is where NATS tells us that nobody listens.
    """

    to: str
    token: str
    patience: int
    beat: Callable[[], bytes]
    lost: Callable[[], None]
    silent: int = field(default=0, init=False)
    _refused: bool = field(default=False, init=False)
    _refused_beats: int = field(default=0, init=False)

    def heard(self) -> None:
        """A frame came from the peer."""
        self.silent = 0

    def refused(self) -> None:
        """NATS had nobody to give our frame to."""
        self._refused = True

    def tick(self) -> bool:
        """One beat has passed in which the peer could be heard; returns whether it is lost now."""
        self.silent += 1
        self._refused_beats = self._refused_beats + 1 if self._refused else 0
        self._refused = False
        return self.silent > self.patience or self._refused_beats >= REFUSED_BEATS

    def forgive(self) -> None:
        """Start counting anew: the silence was ours."""
        self.silent = self._refused_beats = 0
        self._refused = False


class Links:
    """All links of one bus, and the heartbeat that serves them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._links: dict[str, Link] = {}
        self._numbers = itertools.count()
        self._grace = 0

    def __len__(self) -> int:
        return len(self._links)

    def open(self, to: str, patience: int, *, beat: Callable[[], bytes], lost: Callable[[], None]) -> Link:
        link = Link(to, f"l{next(self._numbers)}", patience, beat, lost)
        self._links[link.token] = link
        return link

    def close(self, link: Link) -> None:
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
        """NATS is back: nobody could be heard while it was gone, and what was under way then may be lost."""
        self._grace = CALLEE_BEATS
        for link in list(self._links.values()):
            link.forgive()
            self.send(link, link.beat())

    def tick(self, *, audible: bool) -> None:
        """One beat has passed: send ours and, if peers could be heard, give up those that were silent for too long."""
        self._grace = max(0, self._grace - 1)
        for link in list(self._links.values()):
            if audible and link.tick():
                self.close(link)
                link.lost()
            else:
                self.send(link, link.beat())
