"""The thread that owns NIXL: runs what others hand it, polls, fires timers, and otherwise sleeps.

NIXL's agent is not thread-safe and some of its calls take milliseconds, so exactly one thread calls it and it is not
the event loop's. Waiting is adaptive: the pause between two polls is a fixed share of how long nothing has happened,
so waiting adds little to any latency, costs a number of polls that grows with the *logarithm* of the wait, and an
idle process sleeps.

What raises on this thread costs as little as it may: a task fails what it was for, a word to a peer is lost, as words
may be. What a poll or a timer raises ends the thread: nothing could be relied on any more. Then everything that waits
fails, the cause is logged, and the connector's ``on_failure`` hears of it.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from .errors import ConnectorClosed, TransferError, bare

logger = logging.getLogger(__name__)
T = TypeVar("T")
_PR_SET_TIMERSLACK = 29
SPIN_S = 200e-6
"""After this long without anything happening the thread sleeps between polls, so as not to take the GIL from others."""
WORKED_S = 20e-6
"""A poll that cost more processor time than this moved bytes itself (TCP): that counts as something happening."""
IDLE_S = 50e-3
"""With pauses as long as this nothing is expected, and there is no spinning."""
BUSY_S = 1e-3
"""Work in polls is looked for while the longest pause is shorter than this: while bytes may be moving."""


class Pump(Protocol):
    """What the owner thread drives."""

    def poll(self) -> bool:
        """Look once at everything; True when something happened."""

    def abandon(self, why: str) -> None:
        """The thread ends, in order or by a failure: leave nobody waiting."""

    def patience(self) -> tuple[float, float]:
        """How to wait now: the share of the quiet time to pause, and the longest pause in seconds."""


class Timer:
    """Cancelling lets go of the action, and so of the operation and its memory, at once."""

    __slots__ = ("_dead", "action")

    def __init__(self, action: Callable[[], None], dead: list[int]) -> None:
        self.action: Callable[[], None] | None = action
        self._dead = dead

    def cancel(self) -> None:
        if self.action is not None:
            self.action = None
            self._dead[0] += 1


Failed = Callable[[Exception], object]
"""Fails what a task was for; on the owner thread."""


class OwnerThread:
    """``call`` and ``submit`` may be used from any thread; ``at`` and the pump run on this one. ``on_failure`` is told
    name and error when the thread has ended by an error."""

    def __init__(self, name: str, pump: Pump, on_failure: Callable[[str, BaseException], object] | None = None) -> None:
        self.name = f"nixl-{name}"
        self.failure: str | None = None
        """What ended the thread, if it was an error."""
        self._pump = pump
        self._on_failure = on_failure
        self._tasks: deque[tuple[Callable[[], None], Failed | None]] = deque()
        self._wake = threading.Lock()  # free when there is a reason to wake
        self._wake.acquire()
        self._is_woken = False
        self._mail: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        self._after: list[Callable[[], object]] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._dead = [0]
        self._count = itertools.count()
        self._stopping = False
        self._stopped = False
        # A finalizer may hand in a task while this very thread is inside ``submit``: the garbage collector called it.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    # from any thread

    def submit(self, task: Callable[[], None], failed: Failed | None = None) -> bool:
        """Run the task soon, in order. False when the thread has ended. If the task raises, or the thread fails before
        it, ``failed`` is called."""
        entry = (task, failed)
        with self._lock:
            if self._stopped:
                return False
            self._tasks.append(entry)
            if not self._is_woken:
                self._is_woken = True
                self._wake.release()
            return True

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run the function on the owner thread; awaited on the running loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            outcome: Future[T] = Future()
            try:
                outcome.set_result(function())
            except Exception as error:  # noqa: BLE001 - handed to the caller, who decides
                if isinstance(error, TransferError):
                    bare(error)
                outcome.set_exception(error)
            self.deliver(loop, lambda: _copy(outcome, future))

        def failed(error: Exception) -> None:
            outcome: Future[T] = Future()
            outcome.set_exception(error)
            self.deliver(loop, lambda: _copy(outcome, future))

        if not self.submit(run, failed):
            future.set_exception(self.closed())
        return future

    def closed(self) -> ConnectorClosed:
        """Why nothing can be handed in any more."""
        return ConnectorClosed("the connector is closed" if self.failure is None else self.failure)

    def stop(self) -> None:
        """End after the tasks handed in so far; returns at once."""
        self.submit(self._stop)

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def where(self) -> str:
        """What the thread does now, as a traceback."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "nothing: it has ended"

    # on the owner thread

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        """Run the action at this ``time.monotonic()``."""
        timer = Timer(action, self._dead)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        # Nearly every timer is cancelled, long before its time: do not let them pile up.
        if self._dead[0] > 64 and self._dead[0] > len(self._timers) // 2:
            self._timers = [entry for entry in self._timers if entry[2].action is not None]
            heapq.heapify(self._timers)
            self._dead[0] = 0
        return timer

    def deliver(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        """Run the callback on the loop, with all others of this turn: waking a loop costs as much as a small
        transfer."""
        self._mail.setdefault(loop, []).append(callback)

    def after(self, action: Callable[[], object]) -> None:
        """Run the action at the end of this turn, while the loops wake up."""
        self._after.append(action)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        _precise_sleeps()
        try:
            self._drive()
        except BaseException as error:
            logger.critical("%s ended unexpectedly: %s: %s", self.name, type(error).__name__, error, exc_info=error)
            self.failure = f"the connector failed: {type(error).__name__}: {error}"
            self._finish()
            self._tell(error)
        else:
            self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._stopped = True
        if self.failure is None:
            _try(self._run_tasks)
        while self._tasks:
            failed = self._tasks.popleft()[1]
            if failed is not None:
                _try(partial(failed, self.closed()))
        _try(partial(self._pump.abandon, self.failure or "the connector stopped"))
        self._end_turn()
        self._timers.clear()

    def _tell(self, error: BaseException) -> None:
        if self._on_failure is not None:
            try:
                self._on_failure(self.name, error)
            except Exception:  # The application's: nothing here can mend it.
                logger.exception("whoever is to hear that %s has ended could not be told", self.name)

    def _drive(self) -> None:
        active = time.monotonic()
        while not self._stopping:
            ran = self._run_tasks()
            share, longest = self._pump.patience()
            before = time.thread_time() if longest < BUSY_S else float("inf")
            happened = self._pump.poll()
            self._end_turn()
            now = time.monotonic()
            self._fire(now)
            if ran or happened or time.thread_time() - before > WORKED_S:
                active = now
                continue
            pause = min((now - active) * share, longest)
            if self._timers:
                pause = min(pause, self._timers[0][0] - now)
            if now - active < SPIN_S and longest < IDLE_S:
                continue
            self._sleep(max(pause, 1e-6))

    def _sleep(self, seconds: float) -> None:
        """Until a task comes, and at most so long."""
        # Not a queue's ``get``: that of SimpleQueue, on Python 3.11 and 3.12, now and then waits for ever when its
        # time-out is of microseconds, because it counts what is left below zero.
        if self._wake.acquire(timeout=seconds):
            with self._lock:
                self._is_woken = False

    def _run_tasks(self) -> bool:
        """Those that are there; more may come meanwhile."""
        waiting = len(self._tasks)
        for _ in range(waiting):
            self._run_task()
            if self._after:
                self._end_turn()
        if waiting:
            self._end_turn()
        return waiting > 0

    def _run_task(self) -> None:
        # In no variable that lasts: while this thread sleeps, a task would keep its operation's memory alive.
        task, failed = self._tasks.popleft()
        try:
            task()
        except Exception as error:
            logger.exception("a task of %s failed", self.name)
            if failed is not None:
                failed(error)

    def _end_turn(self) -> None:
        while self._mail or self._after:
            mail, self._mail = self._mail, {}
            for loop, callbacks in mail.items():
                try:
                    loop.call_soon_threadsafe(_run, callbacks)
                except RuntimeError:  # whoever awaited is gone with a closed loop
                    logger.debug("an outcome came after its event loop was closed")
            after, self._after = self._after, []
            for action in after:
                _try(action)

    def _fire(self, now: float) -> None:
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].action is None):
            timer = heapq.heappop(self._timers)[2]
            action, timer.action = timer.action, None
            if action is None:
                self._dead[0] -= 1
            else:
                action()
                self._end_turn()


def _run(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        _try(callback)


def _try(action: Callable[[], object]) -> None:
    """For what must not keep others from theirs: the word to one peer, the outcome of one operation."""
    try:
        action()
    except Exception:
        logger.exception("the data plane goes on without what failed here")


def _copy(source: Future[T], target: asyncio.Future[T]) -> None:
    if target.done():
        return
    error = source.exception()
    if error is not None:
        target.set_exception(error)
    else:
        target.set_result(source.result())


def _precise_sleeps() -> None:
    """Linux rounds sleeps up by 50 µs unless told otherwise: more than a small transfer takes."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    except (OSError, AttributeError):
        logger.debug("no prctl here: short sleeps stay coarse")
