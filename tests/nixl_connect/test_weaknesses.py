"""The known weaknesses of the field's best-known implementation, W1 to W21 as they are numbered in
docs/nixl_connect/why.md. Each test fails against the behaviour in its name."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from components import nixl_connect as nc
from components.nixl_connect import (
    Connector,
    Descriptor,
    OperationStatus,
    RdmaMetadata,
    operations,
    parse_record,
    peers,
)
from components.nixl_connect.agent import Progress
from components.nixl_connect.core import Core
from components.nixl_connect.wire import Kind, Message, encode

from .harness import Remote, at_rest, pattern, remote, until

SIZE = 65536


def core_of(connector: Connector) -> Core:
    assert connector._pump.core is not None
    return connector._pump.core


async def read(connector: Connector, record: RdmaMetadata, **options: Any) -> np.ndarray:
    target = np.zeros(record.size, np.uint8)
    operation = await connector.begin_read(record, Descriptor(target), **options)
    await operation.wait_for_completion()
    return target


async def exposed(other: Remote, number: int = 1, size: int = SIZE, **options: Any) -> RdmaMetadata:
    return parse_record(await other.ask("expose", number=number, size=size, **options))


async def test_w1_completion_messages_are_not_kept(connector: Connector) -> None:
    async with Connector("near") as near:
        for _ in range(120):
            operation = await connector.create_readable(Descriptor(np.zeros(64, np.uint8)))
            await read(near, operation.metadata())
            await operation.wait_for_completion()
        for one in (connector, near):
            core = core_of(one)
            assert core.agent._nixl.notifs == {}
            assert len(core.leases) == len(core.transfers) == 0
            assert one._owner is not None and len(one._owner._timers) < 200


async def test_w2_a_registration_stays_with_whoever_made_it(connector: Connector, other: Remote) -> None:
    target = np.zeros(SIZE, np.uint8)
    descriptor = Descriptor(target)
    await descriptor.register_memory(connector)
    for number in range(5):
        operation = await connector.begin_read(await exposed(other, number), descriptor)
        await operation.wait_for_completion()
    assert connector.counters().registrations == connector.counters().registered_total == 1
    await descriptor.deregister_memory(connector)
    del operation, descriptor, target
    gc.collect()
    await until(lambda: connector.counters().registrations == 0)


async def test_w2_memory_nobody_registered_keeps_its_registration_as_long_as_it_lives(
    connector: Connector, other: Remote
) -> None:
    target = np.zeros(SIZE, np.uint8)
    for number in range(5):
        operation = await connector.begin_read(await exposed(other, number), Descriptor(target))
        await operation.wait_for_completion()
    assert connector.counters().registered_total == 1
    del operation, target
    await until(lambda: connector.counters().registrations == 0)


async def test_w3_one_descriptor_serves_two_live_operations(connector: Connector) -> None:
    source = pattern(SIZE, 1)
    descriptor = Descriptor(source)
    first, second = [await connector.create_readable(descriptor) for _ in range(2)]
    async with Connector("near") as near:
        assert np.array_equal(await read(near, first.metadata()), source)
        await first.wait_for_completion()
        assert connector.counters().registrations == 1
        assert np.array_equal(await read(near, second.metadata()), source)


async def test_w4_a_peer_is_loaded_once_and_its_metadata_travels_once(connector: Connector, other: Remote) -> None:
    me = connector.identity
    first = await exposed(other, 0, reader=me)
    assert first.regions[0].nixl_metadata is not None
    await read(connector, first)
    for number in range(1, 20):
        record = await exposed(other, number, reader=me)
        assert record.regions[0].nixl_metadata is None
        assert len(record.model_dump_json()) < 700
        await read(connector, record)
    assert connector.counters().peer_loads_total == 1
    assert (await other.ask("counters"))["peer_loads_total"] == 1


async def test_w4_without_metadata_and_without_having_it_a_typed_error_says_so(other: Remote) -> None:
    record = await exposed(other)
    regions = tuple(region.model_copy(update={"nixl_metadata": None}) for region in record.regions)
    bare = record.model_copy(update={"regions": regions})
    async with Connector("stranger") as stranger:
        with pytest.raises(nc.PeerUnknown) as caught:
            await read(stranger, bare.sealed())
        assert caught.value.retryable and at_rest(stranger.counters())


async def test_w1_regions_that_are_gone_are_not_kept(connector: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is new for each operation has a region of its own: neither side remembers all of them."""
    monkeypatch.setattr(peers, "MAX_REGIONS", 8)
    kept = np.concatenate([pattern(SIZE, index) for index in range(40)])
    async with Connector("near") as near:
        for index in range(40):
            part = np.frombuffer(bytearray(kept[index * SIZE :].tobytes()), np.uint8)  # of another size each time
            operation = await connector.create_readable(Descriptor(part), reader=near.identity)
            assert np.array_equal(await read(near, operation.metadata()), part)
            await operation.wait_for_completion()
            del part, operation
            (peer,) = core_of(near).peers
            assert len(peer.regions) <= 8
        (peer,) = core_of(connector).peers
        await until(lambda: len(peer.seen) <= 2)


async def test_w4_who_was_forgotten_is_sent_the_metadata_again(
    connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader dropped the peer, for a fault of the network or so, and the peer cannot know it but by its silence."""
    monkeypatch.setattr(peers, "SILENT_S", 0.0)
    source = Descriptor(pattern(SIZE, 1))
    async with Connector("near") as near:
        for _ in range(2):
            operation = await connector.create_readable(source, reader=near.identity)
            await read(near, operation.metadata())
            (peer,) = core_of(near).peers
            await near._call(lambda core, peer=peer: core.peers.drop(peer, "a test"))


async def test_w4_new_keys_for_old_memory_are_used(connector: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is freed, another gets its address: on RDMA with other keys, and NIXL keeps the first it was told."""
    source, target = Descriptor(pattern(SIZE, 1)), Descriptor(np.zeros(SIZE, np.uint8))
    async with Connector("near") as near:
        dropped: list[str] = []
        await near.start()
        agent = core_of(near).agent
        drop = agent.drop_peer
        monkeypatch.setattr(agent, "drop_peer", lambda name: (dropped.append(name), drop(name))[1])
        for keys in range(3):
            operation = await connector.create_readable(source)
            record = operation.metadata()
            region = record.regions[0]
            (peer,) = core_of(near).peers if keys else (None,)
            if peer is not None and keys == 1:
                peer.regions.clear()  # as if it had been announced under another id, with other keys
                peer.spans = {span: (id, other + 1) for span, (id, other) in peer.spans.items()}
            reading = await near.begin_read(record, target)
            await reading.wait_for_completion()
            await operation.wait_for_completion()
            assert region.id in next(iter(core_of(near).peers)).regions
        assert dropped == [connector.identity]


async def test_w5_the_metadata_is_the_regions_not_the_agents(connector: Connector) -> None:
    alone = (await connector.create_readable(Descriptor(np.zeros(SIZE, np.uint8)))).metadata()
    kept = [Descriptor(np.zeros(SIZE, np.uint8)) for _ in range(50)]
    for descriptor in kept:
        await descriptor.register_memory(connector)
    among = (await connector.create_readable(Descriptor(np.zeros(SIZE, np.uint8)))).metadata()
    assert len(among.model_dump_json()) < len(alone.model_dump_json()) + 32
    # And the keys of the others are not in it: a record that points there is refused by the reader's own NIXL.
    secret = kept[7]
    region = among.regions[0].model_copy(update={"ptr": secret.ptr, "size": secret.size})
    item = among.descriptors[0].model_copy(update={"ptr": secret.ptr, "size": secret.size})
    forged = among.model_copy(update={"regions": (region,), "descriptors": (item,)}).sealed()
    async with Connector("mallory") as mallory:
        with pytest.raises(nc.TransferError):
            await read(mallory, forged, deadline=2.0)


async def test_w6_looking_starts_nothing_and_beginning_starts(connector: Connector, other: Remote) -> None:
    record = parse_record(await other.ask("accept", number=1, sizes=[SIZE]))
    staged = await connector.begin_write(Descriptor(pattern(SIZE, 1)), record, staged=True)
    await until(lambda: staged.status is OperationStatus.IN_PROGRESS)
    for _ in range(1000):
        assert staged.status is OperationStatus.IN_PROGRESS
    assert connector.counters().handles == 0
    staged.cancel()
    # The other way round: nobody waits for, or looks at, this operation, and its bytes arrive.
    target = np.zeros(SIZE, np.uint8)
    operation = await connector.begin_read(await exposed(other, 2), Descriptor(target))
    assert await other.ask("wait", number=2) == "COMPLETE"
    assert np.array_equal(target, pattern(SIZE, 2))
    del operation


async def test_w7_cancelling_moves_no_byte(connector: Connector, other: Remote) -> None:
    record = parse_record(await other.ask("accept", number=1, sizes=[SIZE] * 2, lease=20.0))
    sources = [Descriptor(pattern(SIZE, seed)) for seed in (1, 2)]
    async with await connector.begin_write(sources, record, staged=True) as staged:
        await until(lambda: staged.status is OperationStatus.IN_PROGRESS)
    assert staged.status is OperationStatus.CANCELLED
    with pytest.raises(nc.Cancelled):
        await staged.wait_for_completion()
    staged.post([0, 1])
    with pytest.raises(nc.Cancelled):
        await other.ask("wait", number=1)
    assert not await other.ask("written", number=1, seed=1)
    assert connector.counters().transfers[nc.Flow("write", "cpu-cpu", "cancelled")].bytes == 0
    staged.cancel()  # a second time, and after an end: nothing
    assert staged.status is OperationStatus.CANCELLED


async def test_w8_the_exposing_side_has_leases_cancel_and_learns_of_the_readers_cancel(connector: Connector) -> None:
    memory = Descriptor(np.zeros(SIZE, np.uint8))
    start = time.monotonic()
    expired = await connector.create_readable(memory, lease=0.2)
    with pytest.raises(nc.LeaseExpired):
        await expired.wait_for_completion()
    assert 0.2 <= time.monotonic() - start < 5.0
    cancelled = await connector.create_writable(memory)
    cancelled.cancel()
    with pytest.raises(nc.Cancelled):
        await cancelled.wait_for_completion()
    async with Connector("near") as near:
        written = await connector.create_writable(memory, lease=20.0)
        writer = await near.begin_write(Descriptor(np.zeros(SIZE, np.uint8)), written.metadata(), staged=True)
        await until(lambda: writer.status is OperationStatus.IN_PROGRESS)
        writer.cancel()
        with pytest.raises(nc.Cancelled):
            await written.wait_for_completion()
    assert at_rest(connector.counters())


async def test_w9_waiting_is_not_made_of_long_sleeps(connector: Connector, other: Remote) -> None:
    times = []
    target = Descriptor(np.zeros(1 << 20, np.uint8))
    for number in range(40):
        record = await exposed(other, number, 1 << 20)
        start = time.perf_counter()
        operation = await connector.begin_read(record, target)
        await operation.wait_for_completion()
        times.append(time.perf_counter() - start)
    assert min(times) < 4e-3, "less than the first of the sleeps in question"


async def test_w10_a_slow_nixl_call_does_not_hold_the_event_loop(connector: Connector, other: Remote) -> None:
    agent = core_of(connector).agent
    load = agent.load_peer

    def slow(metadata: bytes) -> str:
        time.sleep(0.5)
        return load(metadata)

    agent.load_peer = slow  # type: ignore[method-assign]
    record = await exposed(other)
    longest, last = 0.0, time.perf_counter()
    reading = asyncio.ensure_future(read(connector, record))
    while not reading.done():
        await asyncio.sleep(0.002)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert np.array_equal(await reading, pattern(SIZE, 1))
    assert longest < 0.4


async def test_w11_a_beginning_that_fails_leaves_nothing_half_made(connector: Connector, other: Remote) -> None:
    complaints: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, complaints.append
    try:
        record = await exposed(other)
        region = record.regions[0].model_copy(update={"nixl_metadata": "bm90IG1ldGFkYXRh"})
        with pytest.raises(nc.TransferError):
            await read(connector, record.model_copy(update={"regions": (region,)}).sealed())
        with pytest.raises(nc.InvalidBuffer):
            await connector.begin_read(record, Descriptor(np.zeros(3, np.uint8)))
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert complaints == []
    assert at_rest(connector.counters()) and connector.counters().registrations == 0
    assert np.array_equal(await read(connector, record), pattern(SIZE, 1))


async def test_w12_cleaning_up_waits_for_no_garbage_collector(connector: Connector, other: Remote) -> None:
    members = [m for _, m in inspect.getmembers(operations, inspect.isclass) if m.__module__ == operations.__name__]
    assert not any("__del__" in vars(member) for member in [*members, Connector, Descriptor])
    gc.disable()
    try:
        pool = await connector.create_pool(1 << 20)
        slot = pool.allocate(SIZE)
        operation = await connector.begin_read(await exposed(other), slot.descriptor)
        slot.release()
        await operation.wait_for_completion()
        await operation.wait_for_release()
        assert pool.used == 0 and operation.status is OperationStatus.COMPLETE
    finally:
        gc.enable()


async def test_w13_any_thread_may_post_and_cancel(connector: Connector, other: Remote) -> None:
    for number in range(4):
        record = parse_record(await other.ask("accept", number=number, sizes=[4096] * 32))
        operation = await connector.begin_write([Descriptor(pattern(4096, i)) for i in range(32)], record, staged=True)
        threads = [threading.Thread(target=operation.post, args=(range(i, 32, 4),)) for i in range(4)]
        if number == 3:
            threads.append(threading.Thread(target=operation.cancel))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if number < 3:
            await operation.wait_for_completion()
            assert await other.ask("written", number=number, seed=0)
    await operation.wait_for_release()
    assert at_rest(connector.counters())


async def test_w14_what_cannot_be_recalled_keeps_its_memory_until_it_ends(connector: Connector, other: Remote) -> None:
    agent = core_of(connector).agent
    check, stuck = agent.check, threading.Event()
    agent.check = lambda *a: Progress.MOVING if not stuck.is_set() else check(*a)  # type: ignore[method-assign]
    post = agent.post
    agent.post = lambda *a: (post(*a), Progress.MOVING)[1]  # type: ignore[method-assign]
    pool = await connector.create_pool(1 << 20)
    slot = pool.allocate(SIZE)
    operation = await connector.begin_read(await exposed(other), slot.descriptor)
    slot.release()
    await until(lambda: core_of(connector).transfers.moving)
    operation.cancel()
    with pytest.raises(nc.Cancelled):
        await operation.wait_for_completion()
    counters = connector.counters()
    assert (counters.quarantined, counters.handles, counters.pool_used_bytes) == (1, 1, SIZE)
    stuck.set()
    await operation.wait_for_release()
    assert at_rest(connector.counters()) and pool.used == 0


async def test_w15_memory_that_is_not_contiguous_is_refused() -> None:
    torch = pytest.importorskip("torch")
    for strided in (np.zeros((8, 8), np.uint8)[:, ::2], torch.zeros(8, 8)[:, ::2], memoryview(bytearray(8))[::2]):
        with pytest.raises(nc.InvalidBuffer):
            Descriptor(strided)


async def test_w16_no_gpu_and_no_cupy_are_needed() -> None:
    assert Connector().is_cuda_available in (True, False)
    assert "cupy" not in sys.modules
    assert Descriptor((np.zeros(4, np.float32), "cpu")).size == 16


async def test_w17_what_is_wrong_in_a_record_is_found_before_nixl_sees_it(other: Remote) -> None:
    good = (await exposed(other)).model_dump(mode="json")
    item = good["descriptors"][0]
    for change in (
        {"operation_kind": 3},
        {"operation_kind": 0},
        {"operation_kind": "READ"},
        {"descriptors": []},
        {"descriptors": [1]},
        {"descriptors": [item | {"ptr": 0}]},
        {"descriptors": [item | {"ptr": -1}]},
        {"descriptors": [item | {"size": 0}]},
        {"descriptors": [item | {"device": "gpu:0"}]},
        {"descriptors": [item | {"dtype": "float7"}]},
        {"unknown": 1},
        {"version": 1},
    ):
        with pytest.raises(ValidationError):
            RdmaMetadata.model_validate(good | change)
        with pytest.raises(nc.BadRecord):
            parse_record(good | change)


async def test_w18_immutable_memory_is_no_destination_and_a_bytearray_stays_where_it_is(
    connector: Connector, other: Remote
) -> None:
    record = await exposed(other)
    with pytest.raises(nc.InvalidBuffer):
        await connector.begin_read(record, Descriptor(bytes(SIZE)))
    with pytest.raises(nc.InvalidBuffer):
        await connector.create_writable(Descriptor(bytes(SIZE)))
    grown = bytearray(SIZE)
    descriptor = Descriptor(grown)
    with pytest.raises(BufferError):
        grown.extend(b"more")
    await (await connector.begin_read(record, descriptor)).wait_for_completion()
    assert grown == pattern(SIZE, 1).tobytes()


async def test_w19_a_connector_can_key_a_dictionary() -> None:
    one, two = Connector("a"), Connector("a")
    assert {one: 1, two: 2}[one] == 1 and one != two


async def test_w20_everything_is_counted(connector: Connector, other: Remote) -> None:
    await read(connector, await exposed(other))
    with pytest.raises(nc.TransferError):
        record = await exposed(other, 2)
        await other.ask("cancel", number=2)
        await read(connector, record)
    counters = connector.counters()
    good = counters.transfers[nc.Flow("read", "cpu-cpu", "complete")]
    assert (good.transfers, good.bytes) == (1, SIZE) and good.seconds > 0
    assert counters.transfers[nc.Flow("read", "cpu-cpu", "cancelled")].transfers == 1
    assert (await other.ask("counters"))["exposures_total"] == {"complete": 1, "cancelled": 1}
    assert (await other.ask("counters"))["refused_total"] == {"cancelled": 1}


async def test_w21_only_who_claimed_can_complete(connector: Connector) -> None:
    target = np.zeros(SIZE, np.uint8)
    operation = await connector.create_writable(Descriptor(target))
    key = bytes.fromhex(operation.metadata().notification_key)
    async with Connector("mallory") as mallory, Connector("near") as near:
        other = await connector.create_readable(Descriptor(np.zeros(8, np.uint8)))
        await read(mallory, other.metadata())  # a peer like any other
        writer = await near.begin_write(Descriptor(pattern(SIZE, 4)), operation.metadata(), staged=True)
        await until(lambda: writer.status is OperationStatus.IN_PROGRESS)
        ignored = connector.counters().ignored_notifications_total
        agent = core_of(mallory).agent
        for number in range(4):
            done = encode(Message(Kind.DONE, key, number))
            await mallory._call(lambda core, done=done: agent.notify(connector.identity, done))
        await until(lambda: connector.counters().ignored_notifications_total == ignored + 4)
        assert operation.status is OperationStatus.IN_PROGRESS
        writer.post(0)
        await operation.wait_for_completion()
    assert np.array_equal(target, pattern(SIZE, 4))


async def test_w21_a_claim_in_somebody_elses_name_is_not_granted(connector: Connector) -> None:
    operation = await connector.create_readable(Descriptor(np.zeros(SIZE, np.uint8)))
    async with Connector("mallory") as mallory:
        other = await connector.create_readable(Descriptor(np.zeros(8, np.uint8)))
        await read(mallory, other.metadata())
        record = operation.metadata()
        claim = Message(
            Kind.CLAIM,
            bytes.fromhex(record.notification_key),
            1,
            seal=bytes.fromhex(record.seal),
            seconds=5.0,
            name="somebody@0123456789abcdef",
        )
        ignored = connector.counters().ignored_notifications_total
        await mallory._call(lambda core: core.agent.notify(connector.identity, encode(claim)))
        await until(lambda: connector.counters().ignored_notifications_total > ignored)
    assert operation.status is OperationStatus.INITIALIZED


async def test_the_harness_can_stop_a_remote() -> None:
    async with remote("short") as other:
        assert (await other.ask("identity")).startswith("short@")
