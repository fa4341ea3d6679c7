"""Does the other process still live? Asked and answered by a thread of its own, over a connection of its own.

An event loop can be busy for seconds: its process computes, or waits for a core. That is not death, and a heartbeat
that waits for its turn there tells nothing else. What is evidence of a death:

- *gone*: NATS has nobody to give our question to. The kernel has closed the sockets of a process that ended.
- *silent*: no answer to several questions running, each asked while we heard ourselves over NATS. The process is
  frozen, its interpreter is held, or its host or network is lost. Questions are counted, not seconds: when this process
  or NATS stalls, a clock would take our own silence for theirs.
- *stuck*: the process answers, but its event loop has not heard itself for very long.

A question goes to ``<address>.heart``; its answer is for how many beats that event loop has not heard itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import struct
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from nats.aio.msg import Msg

from components import aio, background
from components.messaging.addresses import split_reply
from components.messaging.seldom import Seldom
from components.messaging.wire import Wire

log = logging.getLogger(__name__)

BEAT = 0.25
"""Seconds between heartbeats."""

GONE_BEATS = 2
"""So many questions running that nobody has subscribed to: the first can come while the other side reconnects."""

SETTLE_BEATS = 6
"""For so many beats after NATS came back, a missing subscriber may only be slower to return than we were."""

STUCK_BEATS = 40
"""An event loop that has not heard itself for so long (10 s) is as good as dead: longer than any honest work on it."""

_ECHO = "echo"
_ANSWER = struct.Struct(">H")
_MOST = 2**16 - 1


class Death(StrEnum):
    """Why a peer counts as dead; see the module."""

    GONE = "gone"
    SILENT = "silent"
    STUCK = "stuck"


@dataclass(eq=False)
class Pulse:
    """One peer, asked at every beat until ``dead`` has been called. Made by ``Heart.watch``."""

    address: str
    token: str
    patience: int
    dead: Callable[[Death], None]
    silent: int = field(default=0, init=False)
    """Beats without a sign of life."""
    _refused: bool = field(default=False, init=False)
    _refused_beats: int = field(default=0, init=False)
    _stuck_beats: int = field(default=0, init=False)

    def answered(self, stuck_beats: int) -> None:
        self.silent = 0
        self._stuck_beats = stuck_beats

    def refused(self) -> None:
        """NATS had nobody to give our question to."""
        self._refused = True

    def beat(self) -> Death | None:
        """One beat has passed in which the peer could be heard."""
        self.silent += 1
        self._refused_beats = self._refused_beats + 1 if self._refused else 0
        self._refused = False
        if self._refused_beats >= GONE_BEATS:
            return Death.GONE
        if self.silent > self.patience:
            return Death.SILENT
        if self._stuck_beats >= STUCK_BEATS:
            return Death.STUCK
        return None

    def forgive(self) -> None:
        """Start counting anew: the silence was ours."""
        self.silent = self._refused_beats = self._stuck_beats = 0
        self._refused = False


class Heart:
    """Create with ``start``, on the event loop that it speaks for.

    Its own state belongs to its thread; what other threads touch is the dictionary of pulses (under the lock), and
    single attributes.
    """

    def __init__(self, servers: Sequence[str], name: str, wait: float) -> None:
        self._servers = servers
        self._name = name
        self._wait = wait
        self._owner = asyncio.get_running_loop()
        self._pulses: dict[str, Pulse] = {}
        self._lock = threading.Lock()
        self._tokens = itertools.count()
        self._echoed = False
        self._settling = 0
        self._stuck_beats = 0
        self._complaints = Seldom(log)
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        # Whoever waits for them may be cancelled, but not they: the thread must be able to set them.
        self._started.set_running_or_notify_cancel()
        self._ended.set_running_or_notify_cancel()
        background.thread(self._run, "messaging-heart", failed=self._failed)

    @classmethod
    async def start(cls, servers: Sequence[str], *, name: str, wait: float) -> Heart:
        """Waits up to ``wait`` seconds for NATS, then raises ``ConnectionError``."""
        heart = cls(servers, name, wait)
        try:
            await asyncio.wrap_future(heart._started)
        except asyncio.CancelledError:
            await aio.to_the_end(heart.close())
            raise
        return heart

    async def close(self) -> None:
        """Returns once the thread has ended."""
        await asyncio.wait([asyncio.wrap_future(self._started)])
        if self._started.exception() is None and not self._ended.done():
            self._loop.call_soon_threadsafe(self._ending.set)
        await asyncio.wrap_future(self._ended)

    def loop_turned(self) -> None:
        """The event loop that this heart speaks for has heard itself over NATS."""
        self._stuck_beats = 0

    def watch(self, address: str, patience: int, dead: Callable[[Death], None]) -> Pulse:
        """Ask at ``address`` from now on. ``dead`` is called once at most, on the event loop, and ends the watch.

        ``patience`` is for how many beats silence is borne.
        """
        pulse = Pulse(address, f"p{next(self._tokens)}", patience, dead)
        with self._lock:
            self._pulses[pulse.token] = pulse
        return pulse

    def unwatch(self, pulse: Pulse) -> None:
        with self._lock:
            self._pulses.pop(pulse.token, None)

    async def answer(self, address: str) -> Callable[[], Awaitable[None]]:
        """Answer those who ask at ``address``; returns what ends that."""
        stop = await aio.on(self._loop, self._wire.subscribe(f"{address}.heart", self._on_question))

        async def end() -> None:
            if self._wire.up:
                await aio.on(self._loop, _awaited(stop()))

        return end

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        finally:
            self._ended.set_result(None)

    def _failed(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    async def _live(self) -> None:
        try:
            self._wire = await Wire.connect(self._servers, name=f"{self._name}-heart", wait=self._wait)
        except ConnectionError as error:
            self._started.set_exception(error)
            return
        try:
            self._loop = asyncio.get_running_loop()
            self._ending = asyncio.Event()
            self._wire.on_reconnect = self._reconnected
            await self._wire.subscribe(f"{self._wire.inbox}.*", self._on_inbox)
            self._started.set_result(None)
            await aio.unless(self._ending, self._beat())
        finally:
            await self._wire.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            if not self._wire.up:
                continue
            with self._lock:
                pulses = list(self._pulses.values())
            # Who does not hear himself cannot say that others are silent: NATS may have stalled, or the way to it.
            if self._echoed:
                self._echoed = False
                self._settling = max(0, self._settling - 1)
                self._stuck_beats = min(self._stuck_beats + 1, _MOST)
                pulses = [pulse for pulse in pulses if self._lives(pulse)]
            for pulse in pulses:
                self._wire.send(f"{pulse.address}.heart", b"", reply=f"{self._wire.inbox}.{pulse.token}")
            self._wire.send(f"{self._wire.inbox}.{_ECHO}", b"")

    def _lives(self, pulse: Pulse) -> bool:
        death = pulse.beat()
        if death is None:
            return True
        self.unwatch(pulse)
        self._owner.call_soon_threadsafe(pulse.dead, death)
        return False

    def _reconnected(self) -> None:
        """Nobody could be heard while NATS was gone."""
        self._settling = SETTLE_BEATS
        with self._lock:
            for pulse in self._pulses.values():
                pulse.forgive()

    async def _on_question(self, msg: Msg) -> None:
        try:
            split_reply(msg.reply)
        except ValueError as error:
            self._complaints.warning("dropped a question for a sign of life: %s", error)
            return
        self._wire.send(msg.reply, _ANSWER.pack(self._stuck_beats))

    async def _on_inbox(self, msg: Msg) -> None:
        token = msg.subject.rpartition(".")[2]
        if token == _ECHO:
            self._echoed = True
            return
        pulse = self._pulses.get(token)
        if pulse is None:
            return
        if msg.headers:
            if msg.headers.get("Status") == "503" and not self._settling:
                pulse.refused()
        elif len(msg.data) == _ANSWER.size:
            pulse.answered(*_ANSWER.unpack(msg.data))


async def _awaited(what: Awaitable[None]) -> None:
    await what
