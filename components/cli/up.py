"""``triptych up`` and ``triptych demo``: the life of a stack in one terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from components.cli import ports
from components.cli.board import Board
from components.cli.supervisor import StartError, Supervisor
from components.config import Topology

T = TypeVar("T")

STATE = Path(".triptych")
"""Below the working directory: log files, and what a running stack needs on disk."""

Session = Callable[[Supervisor], Coroutine[Any, Any, int]]
"""What to do with a stack that answers; returns an exit status."""


class _Signals:
    """Counts SIGINT and SIGTERM: the first means drain, the second means now."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take)

    def _take(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _until(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Does the work unless the event comes first: then the work is cancelled and the result is None."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            return None
        return task.result()
    finally:
        waiter.cancel()


async def run_stack(topology: Topology, board: Board, verbose: bool, session: Session, once: bool) -> int:
    """Starts the stack, does ``session`` and serves until a signal (``once``: until the session is over), then drains.

    Returns the exit status; whatever happens, no process of the stack is left when it does.
    """
    signals = _Signals()
    signals.install()
    try:
        topology = ports.choose(topology, board.say)
    except ports.PortError as error:
        board.say(str(error), "red")
        return 1
    supervisor = Supervisor(topology, STATE, board, verbose)
    try:
        board.open()
        try:
            started = await _until(signals.first, supervisor.start())
        finally:
            board.close()
        if started is None:
            board.say("stopped while starting", "yellow")
            return 1
        status = await _until(signals.first, session(supervisor))
        if status is not None and not once:
            await _until(signals.first, supervisor.serve())
        board.say("draining (once more to end at once)", "dim")
        if await _until(signals.second, supervisor.drain()) is None:
            board.say("ended at once", "yellow")
        else:
            board.say("stopped", "dim")
        return status or 0
    except StartError as error:
        board.say(str(error), "red")
        return 1
    finally:
        await supervisor.kill()
