"""The staged path, with host memory standing in for the GPU's: the chunks, their order and their errors are the
same."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from components import nixl_connect as nc
from components.nixl_connect import Connector, Descriptor, Device, moves, parse_record
from components.nixl_connect.moves import CHUNK, Chunk, Mover

from .harness import Remote, pattern, remote, until


class HostCopier:
    """Copies between host memories, done only when looked at for the second time."""

    def __init__(self, bounce: Device) -> None:
        self._kept: dict[int, Any] = {}
        self._looked: set[int] = set()

    def chunk(self, size: int) -> Chunk:
        buffer = ctypes.create_string_buffer(size)
        self._kept[ctypes.addressof(buffer)] = buffer
        return Chunk(ctypes.addressof(buffer), object())

    def copy(self, target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    def mark(self, event: Any) -> None:
        self._looked.discard(id(event))

    def passed(self, event: Any) -> bool:
        seen = id(event) in self._looked
        self._looked.add(id(event))
        return seen

    def free(self, chunk: Chunk) -> None:
        del self._kept[chunk.address]


@pytest.fixture
def staging(connector: Connector, monkeypatch: pytest.MonkeyPatch) -> Mover:
    monkeypatch.setattr(moves, "needs_staging", lambda *_: True)
    core = connector._pump.core
    assert core is not None
    core.agent.device = Device("cpu")
    core.transfers.mover = Mover(core.agent, HostCopier)
    return core.transfers.mover


SIZES = [1, 4096, CHUNK - 1, CHUNK, CHUNK + 5, 2 * CHUNK + 17, 3, 5]


async def test_reads_through_chunks(connector: Connector, staging: Mover) -> None:
    async with remote(pool=64 << 20) as other:
        for number, size in enumerate(SIZES):
            record = parse_record(await other.ask("expose", number=number, size=size))
            target = np.zeros(size, np.uint8)
            await (await connector.begin_read(record, Descriptor(target))).wait_for_completion()
            assert np.array_equal(target, pattern(size, number))


async def test_writes_of_many_buffers_through_chunks(connector: Connector, staging: Mover) -> None:
    async with remote(pool=64 << 20) as other:
        record = parse_record(await other.ask("accept", number=1, sizes=SIZES))
        sources = [Descriptor(pattern(size, 60 + index)) for index, size in enumerate(SIZES)]
        await (await connector.begin_write(sources, record)).wait_for_completion()
        assert await other.ask("wait", number=1) == "COMPLETE"
        assert await other.ask("written", number=1, seed=60)


async def test_a_dead_peer_costs_no_chunk(connector: Connector, staging: Mover, other: Remote) -> None:
    record = parse_record(await other.ask("expose", number=1, size=4096))
    await (await connector.begin_read(record, Descriptor(np.zeros(4096, np.uint8)))).wait_for_completion()
    record = parse_record(await other.ask("expose", number=2, size=3 * CHUNK))
    other.kill()
    operation = await connector.begin_read(record, Descriptor(np.zeros(3 * CHUNK, np.uint8)), deadline=3.0)
    with pytest.raises(nc.TransferError):
        await operation.wait_for_completion()
    await operation.wait_for_release()
    (bounce,) = staging._bounces.values()
    await until(lambda: len(bounce.free) == moves.CHUNKS)
    async with remote() as successor:
        record = parse_record(await successor.ask("expose", number=3, size=2 * CHUNK))
        target = np.zeros(2 * CHUNK, np.uint8)
        await (await connector.begin_read(record, Descriptor(target))).wait_for_completion()
        assert np.array_equal(target, pattern(2 * CHUNK, 3))
