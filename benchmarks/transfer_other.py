"""The other process of the transfer benchmark: exposes its memory as it is asked to, through a pipe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from benchmarks.transfer_memory import Memory, cuda_of, touch
from benchmarks.transfer_points import Point
from benchmarks.transfer_raw import Raw
from components.nixl_connect import Connector, Descriptor

LEASE_SECONDS = 120.0


def other_process(pipe: Any, here: str, there: str, size: int, against: Sequence[str]) -> None:
    """Exposes memory of device ``there``. Quiet while raw NIXL is measured."""
    touch(there)
    memory = Memory(there, size)
    raw = Raw("raw-there", memory)
    pipe.send(raw.describe())
    asyncio.run(_serve(pipe, memory, raw, cuda_of(there, here)))
    if "dynamo" in against:
        from benchmarks import transfer_dynamo

        asyncio.run(transfer_dynamo.expose(pipe, memory))


async def _serve(pipe: Any, memory: Memory, raw: Raw, device: str | None) -> None:
    loop = asyncio.get_running_loop()
    async with Connector("there", device=device) as connector:
        whole = Descriptor(memory.data)
        await whole.register_memory(connector)
        pipe.send("ready")
        while (request := await loop.run_in_executor(None, pipe.recv)) is not None:
            command, *arguments = request
            if command == "expose":
                await _expose(pipe, connector, whole, *arguments)
            elif command == "raw":
                pipe.send("progressing")
                quiet = threading.Event()
                progressing = loop.run_in_executor(None, raw.progress, quiet)
                await loop.run_in_executor(None, pipe.recv)
                quiet.set()
                await progressing
                pipe.send("quiet")
            elif command == "fill":
                memory.fill(arguments[0])
                pipe.send("filled")
            elif command == "check":
                pipe.send(memory.same_as(*arguments))


async def _expose(pipe: Any, connector: Connector, whole: Descriptor, point: Point, count: int) -> None:
    """So many operations, their records first; then until all of them are complete."""
    create = connector.create_readable if point.kind == "read" else connector.create_writable
    operations = []
    for index in range(count):
        base = index % point.in_flight * point.size
        parts = [whole.part(base + i * point.piece, point.piece) for i in range(point.buffers)]
        operations.append(await create(parts, lease=LEASE_SECONDS))
    pipe.send([operation.metadata().model_dump_json() for operation in operations])
    await asyncio.gather(*(operation.wait_for_completion() for operation in operations))
    pipe.send("done")
