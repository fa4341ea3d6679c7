"""A process with memory on one device, for ``lanes``: exposes it, and measures reads and writes of another's.

    python -m components.doctor.station cpu BYTES

Standard input takes one JSON object a line, standard output answers each with one: ``{"expose": null}`` with records,
``{"measure": {"read": record, "write": record}, "rounds": 8}`` with the seconds of each round. It ends with its input.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
import time
from typing import Any

from components.nixl_connect import Connector, Descriptor, RdmaMetadata, TransferError

_DEADLINE = 60.0
_LINE = 2**24


async def _serve(device: str, size: int) -> None:
    lines = asyncio.StreamReader(limit=_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with Connector(device=None if device == "cpu" else device) as connector:
        pool = await connector.create_pool(size, device)
        answer({"ready": True})
        while line := await lines.readline():
            command: dict[str, Any] = json.loads(line)
            try:
                if "expose" in command:
                    answer(await _expose(connector, pool.descriptor, command["count"]))
                else:
                    answer({kind: await _measure(connector, pool.descriptor, kind, command[kind]) for kind in command})
            except TransferError as error:
                answer({"error": str(error)})


async def _expose(connector: Connector, memory: Descriptor, count: int) -> dict[str, list[str]]:
    """Records for ``count`` reads and as many writes of all of the memory: a record is good for one."""
    reads = [await connector.create_readable(memory, lease=_DEADLINE) for _ in range(count)]
    writes = [await connector.create_writable(memory, lease=_DEADLINE) for _ in range(count)]
    return {
        "read": [each.metadata().model_dump_json() for each in reads],
        "write": [each.metadata().model_dump_json() for each in writes],
    }


async def _measure(connector: Connector, memory: Descriptor, kind: str, records: list[str]) -> list[float]:
    seconds = []
    for text in records:
        record = RdmaMetadata.model_validate_json(text)
        began = time.perf_counter()
        if kind == "read":
            await (await connector.begin_read(record, memory, deadline=_DEADLINE)).wait_for_completion()
        else:
            await (await connector.begin_write(memory, record, deadline=_DEADLINE)).wait_for_completion()
        seconds.append(time.perf_counter() - began)
    # UCX writes its log through C's buffered streams, and the parent reads it now.
    ctypes.CDLL(None).fflush(None)
    return seconds


def answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
