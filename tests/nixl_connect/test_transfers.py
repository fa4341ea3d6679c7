"""The four verbs between two processes."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from components import nixl_connect as nc
from components.nixl_connect import Connector, Descriptor, OperationStatus, RdmaMetadata, parse_record
from components.nixl_connect.agent import Progress
from components.nixl_connect.moves import Direct, Mover

from .harness import CLOCK, Remote, at_rest, pattern, remote, until

SIZES = [1, 4097, 65536, 1 << 20, 8 << 20]


@pytest.mark.parametrize("size", SIZES)
async def test_read(connector: Connector, other: Remote, size: int) -> None:
    record = parse_record(await other.ask("expose", number=1, size=size))
    target = np.zeros(size, np.uint8)
    async with await connector.begin_read(record, Descriptor(target)) as operation:
        await operation.wait_for_completion()
        assert operation.status is OperationStatus.COMPLETE
        assert operation.results()[0].owner is target
        assert operation.bytes == size and operation.seconds > 0 and operation.lane == "cpu-cpu"
    assert np.array_equal(target, pattern(size, 1))
    assert await other.ask("wait", number=1) == "COMPLETE"
    assert (await other.ask("counters"))["pool_used_bytes"] == 0


@pytest.mark.parametrize("size", SIZES)
async def test_write(connector: Connector, other: Remote, size: int) -> None:
    record = parse_record(await other.ask("accept", number=1, sizes=[size]))
    operation = await connector.begin_write(Descriptor(pattern(size, 5)), record)
    await operation.wait_for_completion()
    assert await other.ask("wait", number=1) == "COMPLETE"
    assert await other.ask("written", number=1, seed=5)


async def test_many_buffers_of_one_tensor_written_part_by_part(connector: Connector, other: Remote) -> None:
    """Layer by layer from another thread, out of order, through one big tensor that is registered once."""
    count, size = 24, 32768
    record = parse_record(await other.ask("accept", number=1, sizes=[size] * count))
    kv = np.concatenate([pattern(size, 100 + index) for index in range(count)])
    whole = Descriptor(kv)
    await whole.register_memory(connector)
    parts = [whole.part(index * size, size) for index in range(count)]
    operation = await connector.begin_write(parts, record, staged=True)

    def compute() -> None:
        for index in reversed(range(0, count, 2)):
            operation.post((index, index + 1))

    await asyncio.to_thread(compute)
    await operation.wait_for_completion()
    assert await other.ask("wait", number=1) == "COMPLETE"
    assert await other.ask("written", number=1, seed=100)
    assert connector.counters().registrations == 1


async def test_parts_posted_before_the_grant_all_land(
    connector: Connector, other: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part is posted, each by itself, before the stopped peer answers the claim; and each has landed by the time
    it is first looked at, as on a fast lane or when the owner thread is held up. It completed after the first of them.
    """
    look = Direct.check

    def look_late(move: Direct) -> Progress:
        until_late = time.monotonic() + 5.0
        while (progress := look(move)) is Progress.MOVING and time.monotonic() < until_late:
            pass
        return progress

    monkeypatch.setattr(Direct, "check", look_late)
    count, size = 6, 4096
    record = parse_record(await other.ask("accept", number=1, sizes=[size] * count))
    parts = [Descriptor(pattern(size, 30 + index)) for index in range(count)]
    other.signal(signal.SIGSTOP)
    operation = await connector.begin_write(parts, record, staged=True)
    for index in range(count):
        operation.post(index)
    assert operation.status is not OperationStatus.COMPLETE
    other.signal(signal.SIGCONT)
    await operation.wait_for_completion()
    assert await other.ask("wait", number=1) == "COMPLETE"
    assert await other.ask("written", number=1, seed=30)


async def test_a_write_is_prepared_before_its_grant_and_posted_after(connector: Connector, other: Remote) -> None:
    record = parse_record(await other.ask("accept", number=1, sizes=[4096]))
    other.signal(signal.SIGSTOP)
    cancelled = await connector.begin_write(Descriptor(pattern(4096, 1)), record)
    await until(lambda: connector.counters().handles == 1)
    assert cancelled.status is OperationStatus.INITIALIZED
    cancelled.cancel()
    await cancelled.wait_for_release()
    assert connector.counters().handles == 0
    other.signal(signal.SIGCONT)
    with pytest.raises(nc.Cancelled):
        await other.ask("wait", number=1)
    assert await other.ask("touched", number=1) == [False]


async def test_a_staged_write_moves_nothing_by_itself_and_is_not_complete_before_its_last_part(
    connector: Connector, other: Remote
) -> None:
    record = parse_record(await other.ask("accept", number=1, sizes=[4096, 4096]))
    operation = await connector.begin_write([Descriptor(pattern(4096, 7 + i)) for i in range(2)], record, staged=True)
    await until(lambda: operation.status is OperationStatus.IN_PROGRESS)
    assert connector.counters().handles == 0
    operation.post(1)
    operation.post([1])
    await until(lambda: connector.counters().handles == 0)
    assert await other.ask("status", number=1) == "IN_PROGRESS"
    assert operation.status is OperationStatus.IN_PROGRESS
    operation.post(0)
    await operation.wait_for_completion()
    assert await other.ask("wait", number=1) == "COMPLETE"
    assert await other.ask("written", number=1, seed=7)
    with pytest.raises(nc.InvalidBuffer):
        operation.post(2)


async def test_sixteen_reads_in_flight(connector: Connector, other: Remote) -> None:
    size = 256 << 10
    records = [parse_record(await other.ask("expose", number=i, size=size)) for i in range(16)]
    target = np.zeros(16 * size, np.uint8)
    whole = Descriptor(target)
    await whole.register_memory(connector)
    operations = [await connector.begin_read(r, whole.part(i * size, size)) for i, r in enumerate(records)]
    await asyncio.gather(*(operation.wait_for_completion() for operation in operations))
    for i in range(16):
        assert np.array_equal(target[i * size : (i + 1) * size], pattern(size, i))


async def test_one_slot_read_by_many_operations_and_many_readers(connector: Connector, other: Remote) -> None:
    size = 65536
    records = await other.ask("expose_again", number=10, first=size, count=5)
    records += [await other.ask("expose", number=10 + 5, size=size, readers=3)] * 3
    for index, text in enumerate(records):
        target = np.zeros(size, np.uint8)
        operation = await connector.begin_read(parse_record(text), Descriptor(target))
        await operation.wait_for_completion()
        assert np.array_equal(target, pattern(size, 10 if index < 5 else 15))
    for number in range(10, 16):
        assert await other.ask("wait", number=number) == "COMPLETE"
    assert (await other.ask("counters"))["pool_used_bytes"] == 0


async def test_the_record_survives_json(other: Remote) -> None:
    record = parse_record(await other.ask("expose", number=1, size=4096, info={"model": "tiny", "b": "ü"}))
    again = RdmaMetadata.model_validate_json(record.model_dump_json())
    assert again == record and again.seal == again.computed_seal()
    assert again.info == {"b": "ü", "model": "tiny"}


async def test_post_is_refused_for_a_write_that_is_not_staged(connector: Connector, other: Remote) -> None:
    record = parse_record(await other.ask("accept", number=1, sizes=[4096]))
    operation = await connector.begin_write(Descriptor(pattern(4096, 1)), record)
    with pytest.raises(nc.InvalidBuffer):
        operation.post(0)
    await operation.wait_for_completion()


async def test_two_connectors_of_one_process() -> None:
    async with Connector("a") as a, Connector("b") as b:
        source, target = pattern(1 << 20, 3), np.zeros(1 << 20, np.uint8)
        readable = await a.create_readable(Descriptor(source))
        read = await b.begin_read(readable.metadata(), Descriptor(target))
        await read.wait_for_completion()
        await readable.wait_for_completion()
        assert np.array_equal(source, target)
        await until(lambda: at_rest(a.counters()) and at_rest(b.counters()))


async def test_everything_runs_off_the_event_loop(connector: Connector, other: Remote) -> None:
    """No NIXL call on the loop's thread."""
    assert connector._owner is not None and connector._pump.core is not None
    callers: set[int] = set()
    agent = connector._pump.core.agent
    for name in (
        "register",
        "deregister",
        "load_peer",
        "prepare",
        "post",
        "check",
        "notify",
        "notifications",
        "release",
    ):
        original = getattr(agent, name)

        def noting(*arguments: object, call=original) -> object:  # type: ignore[no-untyped-def]
            callers.add(threading.get_ident())
            return call(*arguments)

        setattr(agent, name, noting)
    record = parse_record(await other.ask("expose", number=1, size=1 << 20))
    async with await connector.begin_read(record, Descriptor(np.zeros(1 << 20, np.uint8))) as operation:
        await operation.wait_for_completion()
    assert callers == {connector._owner._thread.ident}


async def test_buffers_that_lie_side_by_side_go_as_one(
    connector: Connector, other: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 56 buffers of a KV in one slab took 0.4 ms to post to a GPU, one takes 16 µs."""
    spans: list[tuple[int, int]] = []
    prepare = Mover.prepare

    def counted(self: Mover, kind: Any, local: Any, here: Any, remote: Any, *rest: Any) -> Any:
        spans.append((len(local), len(remote)))
        return prepare(self, kind, local, here, remote, *rest)

    monkeypatch.setattr(Mover, "prepare", counted)
    slab = await connector.create_pool(1 << 20)
    source = slab.allocate(256 * 8)
    pieces = list(source.numpy().reshape(8, 256))
    parts = [source.descriptor.part(256 * index, 256) for index in range(8)]
    apart = np.zeros(256, np.uint8)

    async def write(local: list[Descriptor], arrays: list[np.ndarray]) -> None:
        for index, array in enumerate(arrays):
            array[:] = pattern(256, 5 + index)
        record = parse_record(await other.ask("accept", number=1, sizes=[256] * 8))
        await (await connector.begin_write(local, record)).wait_for_completion()
        assert await other.ask("wait", number=1) == "COMPLETE"
        assert await other.ask("written", number=1, seed=5)

    await write(parts, pieces)
    assert spans.pop() == (1, 1)
    await write(parts[::-1], pieces[::-1])
    assert spans.pop() == (8, 8)
    await write([*parts[:4], Descriptor(apart), *parts[5:]], [*pieces[:4], apart, *pieces[5:]])
    assert spans.pop() == (3, 3)
    source.release()


@pytest.mark.parametrize("ahead", ["the exposer", "the reader", "nobody"])
async def test_clocks_of_two_machines_need_not_agree(ahead: str) -> None:
    """The reader asked its own clock whether the exposer's lease went on. Ten minutes ahead, it posted no READ before
    its grant; ten minutes behind, it read memory that had gone back to its owner."""
    clocks = [{CLOCK: "600"} if ahead == who else {} for who in ("the exposer", "the reader")]
    async with remote("exposer", env=clocks[0]) as exposer, remote("reader", env=clocks[1]) as reader:
        first = await exposer.ask("expose", number=1, size=4096)
        assert await reader.ask("read", number=1, record=first, seed=1)

        live = await exposer.ask("expose", number=2, size=4096)
        await exposer.halt_before("grant")
        await reader.ask("begin_read", number=2, record=live, seed=2)
        await exposer.until_halted()
        async with asyncio.timeout(10):
            while await reader.ask("touched", number=2) != [True]:  # read, and not granted
                pass
        assert await reader.ask("status", number=2) == "INITIALIZED"
        await exposer.ask("go")
        assert await reader.ask("wait", number=2) == "COMPLETE"

        gone = await exposer.ask("expose", number=3, size=4096, lease=0.05)
        with pytest.raises(nc.LeaseExpired):
            await exposer.ask("wait", number=3)
        await reader.halt_before("post")
        await reader.ask("begin_read", number=3, record=gone, seed=3)
        ended = reader.begin("wait", number=3)
        await asyncio.wait([ended, reader.halted], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert not reader.halted.done(), "it reads memory that is no longer lent"
        with pytest.raises(nc.LeaseExpired):
            await ended


async def test_the_first_read_from_a_peer_waits_for_its_word(connector: Connector, other: Remote) -> None:
    """Its clock is not known before."""
    record = parse_record(await other.ask("expose", number=1, size=4096))
    await other.halt_before("grant")
    target = np.zeros(4096, np.uint8)
    operation = await connector.begin_read(record, Descriptor(target))
    await other.until_halted()
    await connector.start()
    assert not target.any() and operation.status is OperationStatus.INITIALIZED
    await other.ask("go")
    await operation.wait_for_completion()
    assert np.array_equal(target, pattern(4096, 1))
