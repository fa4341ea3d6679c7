"""The launcher's end of one node: its agent's answers, its log lines, its end."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from components import aio, background

_LINE = 2**22
_END_SECONDS = 15.0


class NodeError(Exception):
    """A node cannot do its part; the message names it and says why."""


class Remote:
    """An agent on a node. Create with ``start``; ``close`` in the end."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, write: Callable[[str], None]) -> None:
        self.name = name
        self._process = process
        self._write = write
        self._last: deque[str] = deque(maxlen=5)
        self._number = 0
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        # Who waits for an answer gets this one, which is none, when no other can come.
        self._reading = background.task(self._read(), f"the reader of {name}", failed=lambda _: self._no_more())
        self._errors = background.task(self._read_errors(), f"the reader of {name}'s errors")

    @classmethod
    async def start(cls, name: str, command: Sequence[str], write: Callable[[str], None]) -> Remote:
        """Raises ``NodeError`` if there is no such launcher; what happens on the node shows in the first answer."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_LINE,
                # A Ctrl-C in the terminal is for the launcher, which drains the nodes in order.
                start_new_session=True,
            )
        except OSError as error:
            raise NodeError(f"{name}: {command[0]}: {error.strerror}") from error
        return cls(name, process, write)

    async def ask(self, do: str, topology: Any, seconds: float, **more: Any) -> dict[str, Any]:
        """The answer to one command. Raises ``NodeError`` if the node refuses, ends, or is silent for ``seconds``."""
        assert self._process.stdin is not None
        self._number += 1
        command = {"do": do, "number": self._number, "topology": topology, **more}
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            async with asyncio.timeout(seconds):
                answer = await self._answers.get()
                while 0 <= answer.get("answer", -1) < self._number:  # one that was no longer waited for
                    answer = await self._answers.get()
        except TimeoutError:
            raise NodeError(f"{self.name}: no answer to `{do}` after {seconds:g} s") from None
        except ConnectionError:
            await self.ended()
            answer = {}
        if answer.get("answer") != self._number:
            last = "\n".join(f"  {line}" for line in self._last)
            raise NodeError(f"{self.name}: the agent ended; its last lines:\n{last}")
        if "error" in answer:
            raise NodeError(f"{self.name}: {answer['error']}")
        return answer

    async def ended(self) -> None:
        """Returns when the agent, or the connection to it, has ended."""
        await self._process.wait()
        await asyncio.wait((self._reading, self._errors))

    async def close(self) -> None:
        """Ends the input, which ends what runs there; after a while ends the connection, which does the same."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self.ended()
        except TimeoutError:
            self._write("the connection does not end, and is cut")
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            # What the launcher left behind (ssh does, to share a connection) may hold its output open.
            await aio.end(self._reading, self._errors)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = _message(line)
            if "answer" in message:
                self._answers.put_nowait(message)
            else:
                self._take(str(message.get("log", "")).encode() or line)
        self._no_more()

    def _no_more(self) -> None:
        self._answers.put_nowait({})

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._take(line)

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._last.append(text)
        self._write(text)


def _message(line: bytes) -> dict[str, Any]:
    """What the agent says; empty for a line of somebody else's, of the shell on the way say."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
