"""One process under the supervisor: how it starts, what it says, when it is ready, how it ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import dropwhile

from components import aio
from components.telemetry.ready import READY_FD

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> Callable[[], None]:
    """What a child does before exec so that the kernel kills it when this process ends, however that ends."""
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended between fork and prctl, and no signal will come
            os._exit(1)

    return prepare


class Child:
    """A started process. ``lines`` keeps the last of what it wrote; each line also goes to ``write``."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int, write: Callable[[str], None]) -> None:
        self.process = process
        self.lines: deque[str] = deque(maxlen=30)
        self._write = write
        self._ended = False
        self._output = aio.child(self._read_output())
        self._ready = aio.child(_read_ready(pipe))

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], write: Callable[[str], None]) -> Child:
        pipe, child_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**environment, READY_FD: str(child_end)},
                pass_fds=(child_end,),
                # Its own group: a Ctrl-C in the terminal reaches the supervisor alone, which decides who stops when.
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except BaseException:
            os.close(pipe)
            raise
        finally:
            os.close(child_end)
        return cls(process, pipe, write)

    async def ready(self) -> bool:
        """Waits until it says that it is ready (True) or can no longer say so (False)."""
        return await asyncio.shield(self._ready)

    async def wait(self) -> int:
        """Waits for its end and the last of its output; returns its exit status, negative for a signal."""
        status = await self.process.wait()
        # A grandchild may hold the pipes open: it belongs to the group and ends with it.
        self.kill()
        self._ended = True
        await asyncio.shield(self._output)
        await asyncio.shield(self._ready)
        return status

    def last_words(self) -> list[str]:
        """Its last lines; of a traceback only the error, since the frames say nothing to who did not write the code."""
        lines = list(self.lines)
        frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
        rest = lines[frames[-1] + 1 :] if frames else lines
        return list(dropwhile(lambda line: line.startswith("    "), rest)) or lines

    def terminate(self) -> None:
        """Asks it to drain and end."""
        if self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        """Ends it and whatever it started."""
        if self._ended:  # the number may be another process's by now
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def _read_output(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        while chunk := await self.process.stdout.read(65536):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                self._take(line)
        if rest:
            self._take(rest)

    def _take(self, line: bytes) -> None:
        # A progress bar draws itself over and over in one line; the last drawing says it all.
        text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
        self.lines.append(text)
        self._write(text)


async def _read_ready(pipe: int) -> bool:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb"))
    try:
        return await reader.readline() == b"ready\n"
    finally:
        transport.close()


def describe_end(status: int) -> str:
    """``status 1`` or ``SIGKILL``."""
    return signal.Signals(-status).name if status < 0 else f"status {status}"
