"""``triptych nodes`` as a child process."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.servers import ROOT

ANSWERS = re.compile(r"(http://\S+) answers for model")


class Launcher:
    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.printed: list[str] = []

    async def until(self, pattern: re.Pattern[str], seconds: float) -> re.Match[str]:
        """The first line that matches; fails with all that was printed when it ends or is silent before."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            while line := (await self.process.stdout.readline()).decode():
                self.printed.append(line)
                if found := pattern.search(line):
                    return found
        raise AssertionError("it ended:\n" + self.text)

    async def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 90) -> int:
        """Its exit status after a signal."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended(seconds)

    async def ended(self, seconds: float = 90) -> int:
        async with asyncio.timeout(seconds):
            output, _ = await self.process.communicate()
        self.printed.append(output.decode())
        return self.process.returncode or 0

    @property
    def text(self) -> str:
        return "".join(self.printed)


@asynccontextmanager
async def launched(folder: Path, nodes: str, topology: str, options: Sequence[str] = ()) -> AsyncIterator[Launcher]:
    """Runs in ``folder``; killed at the end if it still runs, which ends the agents."""
    (folder / "nodes.yaml").write_text(nodes)
    (folder / "topology.yaml").write_text(topology)
    command = [sys.executable, "-m", "components.cli", "nodes", "-n", "nodes.yaml", "-c", "topology.yaml", *options]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Launcher(process, folder)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
