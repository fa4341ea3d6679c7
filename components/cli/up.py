"""``triptych up`` and ``triptych demo``: the life of a stack in one terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from components import aio, background
from components.cli import ports
from components.cli.board import Board
from components.cli.role import FAILED
from components.cli.supervisor import StartError, Supervisor
from components.config import Topology

STATE = Path(".triptych")
"""Below the working directory: log files, and what a running stack needs on disk."""

Session = Callable[[Supervisor], Coroutine[Any, Any, int]]
"""What to do with a stack that answers; returns an exit status."""


class _Stop:
    """Counts SIGINT and SIGTERM: the first means drain, the second means now. A failure in here means drain, too."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.failed = False
        self._say = say
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._take)

    def fail(self, reason: str) -> None:
        """For ``background.ends_process``: on any thread."""
        self._loop.call_soon_threadsafe(self._fail, reason)

    def _fail(self, reason: str) -> None:
        self.failed = True
        self._say(f"{reason}: the stack ends", "red")
        self.first.set()

    def _take(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def run_stack(topology: Topology, board: Board, verbose: bool, session: Session, once: bool) -> int:
    """Starts the stack, does ``session`` and serves until a signal (``once``: until the session is over), then drains.

    Returns the exit status; whatever happens, no process of the stack is left when it does.
    """
    stop = _Stop(board.say)
    with background.ends_process(stop.fail):
        status = await _run(topology, board, verbose, session, once, stop)
    return FAILED if stop.failed else status


async def _run(topology: Topology, board: Board, verbose: bool, session: Session, once: bool, stop: _Stop) -> int:
    try:
        topology = ports.choose(topology, board.say)
    except ports.PortError as error:
        board.say(str(error), "red")
        return 1
    supervisor = Supervisor(topology, STATE, board, verbose)
    try:
        board.open()
        try:
            started = await aio.unless(stop.first, supervisor.start())
        finally:
            board.close()
        if started is None:
            board.say("stopped while starting", "yellow")
            return 1
        status = await aio.unless(stop.first, session(supervisor))
        if status is not None and not once:
            await aio.unless(stop.first, supervisor.serve())
        board.say("draining (once more to end at once)", "dim")
        if await aio.unless(stop.second, supervisor.drain()) is None:
            board.say("ended at once", "yellow")
        else:
            board.say("stopped", "dim")
        return status or 0
    except StartError as error:
        board.say(str(error), "red")
        return 1
    finally:
        await supervisor.kill()
