"""``dynamo.nixl_connect`` as its users call it, both ends, for the transfer benchmark's ``--against dynamo``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.transfer_memory import Memory
from benchmarks.transfer_points import Point

ROUNDS, WARM_UP = 40, 2
Ask = Callable[..., Coroutine[Any, Any, Any]]


def _local(theirs: Any, memory: Memory, point: Point) -> Any:
    data = memory.tensor()
    parts = [theirs.Descriptor(data[i * point.piece : (i + 1) * point.piece]) for i in range(point.buffers)]
    return parts if len(parts) > 1 else parts[0]


async def expose(pipe: Any, memory: Memory) -> None:
    """The passive end: exposes one operation after another, as it is asked to, until it is told to end."""
    import dynamo.nixl_connect as theirs

    loop = asyncio.get_running_loop()
    connector = theirs.Connector()
    while (request := await loop.run_in_executor(None, pipe.recv)) is not None:
        point = request[1]
        create = connector.create_readable if point.kind == "read" else connector.create_writable
        with await create(_local(theirs, memory, point)) as operation:
            pipe.send(operation.metadata().model_dump_json())
            await operation.wait_for_completion()


async def measure(ask: Ask, memory: Memory, point: Point, connector: Any) -> list[float]:
    """Seconds of each operation: a descriptor and an operation for each, because theirs cannot be kept."""
    import dynamo.nixl_connect as theirs

    times = []
    for _ in range(ROUNDS):
        record = theirs.RdmaMetadata.model_validate_json(await ask("expose", point))
        start = time.perf_counter()
        local = _local(theirs, memory, point)
        begin = connector.begin_read(record, local) if point.kind == "read" else connector.begin_write(local, record)
        with await begin as operation:
            await operation.wait_for_completion()
        times.append(time.perf_counter() - start)
    return times[WARM_UP:]


def new_connector() -> Any:
    import dynamo.nixl_connect as theirs

    return theirs.Connector()
