"""Starts NATS, prints its process id and waits to be killed: ``python -m tests.runtime.orphan FOLDER``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from components.runtime.servers import NatsServer, free_port


async def main(folder: str) -> None:
    async with NatsServer(free_port(), Path(folder)) as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
