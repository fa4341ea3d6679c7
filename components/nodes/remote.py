"""The launcher's end of one node: its agent's answers, its log lines, its end."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

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
        self._reading = asyncio.create_task(self._read())
        self._errors = asyncio.create_task(self._read_errors())

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
            self._process.kill()
            await self.ended()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if not line.startswith(b"{"):
                self._take(line)
                continue
            message: dict[str, Any] = json.loads(line)
            if "log" in message:
                self._take(message["log"].encode())
            else:
                self._answers.put_nowait(message)
        self._answers.put_nowait({})

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._take(line)

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._last.append(text)
        self._write(text)
