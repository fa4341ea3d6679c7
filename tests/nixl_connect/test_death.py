"""The other process is killed, or stopped, right before each step. The one that lives learns it in time, as a typed
error, and ends up with exactly what it had: no lease, handle, registration, pool byte or peer more.

    TRIPTYCH_DEATH_ROUNDS=500 pytest -s tests/nixl_connect/test_death.py -k many_deaths     many in one run, watched
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from components import nixl_connect as nc
from components.nixl_connect import Connector, Descriptor, parse_record

from .harness import Remote, at_rest, pattern, remote, until

SIZE = 1 << 20
TCP = {"UCX_TLS": "tcp,self"}
LEASE, DEADLINE = 1.5, 1.0
IN_TIME = 10.0
"""Seconds: the longest of lease, claim with its grace, and two pings, with room for a busy machine."""


ROUNDS = int(os.environ.get("TRIPTYCH_DEATH_ROUNDS", "6"))
AT_ONCE = 4


def same_as_before(before: nc.Counters, after: nc.Counters) -> bool:
    return at_rest(after) and (after.registrations, after.pool_used_bytes) == (
        before.registrations,
        before.pool_used_bytes,
    )


async def next_one_works(connector: Connector, name: str = "remote") -> None:
    """A successor under the same name is served as if nothing had happened."""
    async with remote(name) as successor:
        record = parse_record(await successor.ask("expose", number=9, size=SIZE))
        target = np.zeros(SIZE, np.uint8)
        await (await connector.begin_read(record, Descriptor(target))).wait_for_completion()
        assert np.array_equal(target, pattern(SIZE, 9))


async def once(connector: Connector, other: Remote) -> None:
    """The two know each other."""
    operation = await connector.create_readable(Descriptor(pattern(4096, 8)))
    assert await other.ask("read", number=8, record=operation.metadata().model_dump_json(), seed=8)
    await operation.wait_for_completion()


async def end_of(operation: nc.ReadOperation | nc.WriteOperation | nc.ReadableOperation) -> nc.TransferError:
    start = time.monotonic()
    with pytest.raises(nc.TransferError) as caught:
        await operation.wait_for_completion()
    assert time.monotonic() - start < IN_TIME
    return caught.value


async def exposer_dies(
    connector: Connector, pool: nc.Pool, other: Remote, kind: str, step: str, how: str = "is killed"
) -> None:
    """The other process exposes, and dies right before that step. Returns when the memory is free again."""
    command = {"read": ("expose", {"size": SIZE}), "write": ("accept", {"sizes": [SIZE]})}[kind]
    record = parse_record(await other.ask(command[0], number=1, **command[1]))
    slot = pool.allocate(SIZE)
    if step == "before":
        await dies(other, how)
    else:
        await other.halt_before(step)
    if kind == "read":
        operation = await connector.begin_read(record, slot.descriptor, deadline=DEADLINE)
    else:
        operation = await connector.begin_write(slot.descriptor, record, deadline=DEADLINE)
    slot.release()
    if step != "before":
        await other.until_halted()
        await dies(other, how)
    error = await end_of(operation)
    assert isinstance(error, nc.PeerLost | nc.DeadlineExceeded), error
    assert error.retryable
    await goes_on(other, how)
    await operation.wait_for_release()


async def active_side_dies(
    connector: Connector, pool: nc.Pool, other: Remote, kind: str, step: str, how: str = "is killed"
) -> None:
    """The other process reads or writes what is exposed here, and dies right before that step."""
    if step in ("prepare", "post", "done"):
        await once(connector, other)  # a first message needs its sender to go on
    slot = pool.allocate(SIZE)
    make = connector.create_readable if kind == "read" else connector.create_writable
    operation = await make(slot.descriptor, lease=LEASE)
    slot.release()
    await other.halt_before(step)
    other.begin(f"begin_{kind}", number=1, record=operation.metadata().model_dump_json(), seed=3, deadline=DEADLINE)
    await other.until_halted()
    await dies(other, how)
    error = await end_of(operation)
    # Dead before it claimed, nobody ever came: the lease ends. After it, the peer is missed.
    expected = nc.LeaseExpired if step in ("load", "claim") else nc.PeerLost
    assert isinstance(error, expected | nc.DeadlineExceeded), error
    assert error.retryable
    await goes_on(other, how)
    await operation.wait_for_release()


async def dies(other: Remote, how: str) -> None:
    if how == "is killed":
        other.kill()
    else:
        other.signal(signal.SIGSTOP)


async def goes_on(other: Remote, how: str) -> None:
    """A stopped process wakes up to what happened, or never does."""
    if how == "is stopped and killed":
        other.kill()
    elif how == "is stopped and goes on":
        other.signal(signal.SIGCONT)
        if other.halted.done():
            await other.ask("go")


EXPOSER_STEPS = ["before", "load", "grant"]
ACTIVE_STEPS = ["load", "claim", "prepare", "post", "done"]


@pytest.mark.parametrize("step", EXPOSER_STEPS)
@pytest.mark.parametrize("kind", ["read", "write"])
async def test_the_exposer_is_killed(connector: Connector, kind: str, step: str) -> None:
    pool = await connector.create_pool(SIZE)
    before = connector.counters()
    async with remote() as other:
        await exposer_dies(connector, pool, other, kind, step)
    await until(lambda: same_as_before(before, connector.counters()))
    await until(lambda: connector.counters().peers == 0)
    await next_one_works(connector)


@pytest.mark.parametrize("step", ACTIVE_STEPS)
@pytest.mark.parametrize("kind", ["read", "write"])
async def test_the_active_side_is_killed(connector: Connector, kind: str, step: str) -> None:
    pool = await connector.create_pool(SIZE)
    before = connector.counters()
    async with remote() as other:
        await active_side_dies(connector, pool, other, kind, step)
    await until(lambda: same_as_before(before, connector.counters()))
    await until(lambda: connector.counters().peers == 0)
    await next_one_works(connector)


async def test_many_deaths_in_one_run(connector: Connector) -> None:
    """One process outlives many others, several at a time, that die at any step in any way and come back under their
    name: it ends up with what it had."""
    pool = await connector.create_pool(2 * AT_ONCE * SIZE)
    before = connector.counters()
    chance = random.Random(ROUNDS)
    deaths = [(exposer_dies, step) for step in EXPOSER_STEPS] + [(active_side_dies, step) for step in ACTIVE_STEPS]
    ways = ["is killed", "is stopped and killed", "is stopped and goes on"]
    rounds = iter(
        [(*chance.choice(deaths), chance.choice(["read", "write"]), chance.choice(ways)) for _ in range(ROUNDS)]
    )
    done = 0
    print(f"before: {footprint()}")

    async def one_after_the_other(name: str) -> None:
        nonlocal done
        for death, step, kind, how in rounds:
            async with remote(name, pool=4 * SIZE) as other:
                try:
                    await death(connector, pool, other, kind, step, how)
                except BaseException as error:
                    error.add_note(f"{death.__name__}: {kind}, {step}, {how}")
                    raise
            done += 1
            if done == ROUNDS // 10 or done % 50 == 0:
                print(f"{done} rounds: {footprint()}, {connector.counters().peers} peers")

    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for index in range(AT_ONCE):
            group.create_task(one_after_the_other(f"mortal-{index}"))
    await until(lambda: same_as_before(before, connector.counters()))
    await until(lambda: connector.counters().peers == 0)
    print(f"{done} rounds in {time.monotonic() - start:.0f} s: {footprint()}; {connector.counters()}")
    await next_one_works(connector, "mortal-0")


def footprint() -> str:
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    files, threads = (len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task"))
    return f"{int(resident.split()[1]) / 1024:.1f} MiB resident, {files} files, {threads} threads"


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_the_exposer_is_stopped_and_goes_on(connector: Connector, kind: str) -> None:
    """Its memory is read and written without it; but nobody grants, so nothing counts. Later all is as before."""
    async with remote() as other:
        for number in (1, 2):  # the connection stands
            record = parse_record(await other.ask("expose", number=number, size=SIZE, lease=20.0))
            await (await connector.begin_read(record, Descriptor(np.zeros(SIZE, np.uint8)))).wait_for_completion()
        command = {"read": ("expose", {"size": SIZE}), "write": ("accept", {"sizes": [SIZE]})}[kind]
        record = parse_record(await other.ask(command[0], number=3, **command[1], lease=20.0))
        other.signal(signal.SIGSTOP)
        local = Descriptor(np.zeros(SIZE, np.uint8))
        if kind == "read":
            operation = await connector.begin_read(record, local, deadline=0.5)
        else:
            operation = await connector.begin_write(local, record, deadline=0.5)
        error = await end_of(operation)
        assert isinstance(error, nc.DeadlineExceeded) and error.retryable
        other.signal(signal.SIGCONT)
        with pytest.raises(nc.TransferError):
            await other.ask("wait", number=3)
        await until(lambda: at_rest(connector.counters()))
        assert (await other.ask("counters"))["quarantined"] == 0
        record = parse_record(await other.ask("expose", number=4, size=SIZE))
        await (await connector.begin_read(record, Descriptor(np.zeros(SIZE, np.uint8)))).wait_for_completion()


@pytest.mark.parametrize("step", ["post", "done"])
async def test_a_stopped_reader_lets_go_and_never_counts_what_it_read_late(connector: Connector, step: str) -> None:
    async with remote() as other:
        await once(connector, other)
        source = pattern(SIZE, 1)
        operation = await connector.create_readable(Descriptor(source), lease=LEASE)
        await other.halt_before(step)
        record = operation.metadata().model_dump_json()
        reading = other.begin("read", number=1, record=record, seed=1, deadline=0.5)
        await other.until_halted()
        other.signal(signal.SIGSTOP)
        error = await end_of(operation)
        assert isinstance(error, nc.DeadlineExceeded) and error.retryable
        await operation.wait_for_release()
        source[:] = 0  # the memory is ours again, and used for something else
        other.signal(signal.SIGCONT)
        await other.ask("go")
        if step == "post":
            with pytest.raises(nc.DeadlineExceeded):
                await reading
        else:  # the bytes were there in time, only the word of it came late
            assert await reading is True
        await until(lambda: at_rest(connector.counters()))


async def test_a_stopped_writer_keeps_the_buffer_in_quarantine_until_it_speaks(connector: Connector) -> None:
    """It may go on writing whenever it wakes: the memory must not be used for anything else before."""
    async with remote() as other:
        target = np.zeros(SIZE, np.uint8)
        operation = await connector.create_writable(Descriptor(target), lease=LEASE)
        await other.halt_before("post")
        record = operation.metadata().model_dump_json()
        await other.ask("begin_write", number=1, record=record, seed=5, deadline=0.5)
        await other.until_halted()
        other.signal(signal.SIGSTOP)
        error = await end_of(operation)
        assert isinstance(error, nc.DeadlineExceeded)
        assert connector.counters().quarantined == 1 and connector.counters().registrations == 1
        other.signal(signal.SIGCONT)
        await other.ask("go")
        await operation.wait_for_release()
        assert at_rest(connector.counters())


async def test_a_killed_writer_frees_the_quarantine(connector: Connector) -> None:
    async with remote() as other:
        operation = await connector.create_writable(Descriptor(np.zeros(SIZE, np.uint8)), lease=LEASE)
        await other.halt_before("post")
        record = operation.metadata().model_dump_json()
        await other.ask("begin_write", number=1, record=record, seed=5, deadline=0.3)
        await other.until_halted()
        other.signal(signal.SIGSTOP)
        assert isinstance(await end_of(operation), nc.DeadlineExceeded)
        assert connector.counters().quarantined == 1
        other.kill()
        await operation.wait_for_release()
        await until(lambda: connector.counters().peers == 0)
        assert at_rest(connector.counters())


@pytest.mark.parametrize("end", ["goes on", "is killed"])
async def test_in_flight_over_tcp_the_exposer_stops_and(end: str) -> None:
    """Bytes are under way and cannot be recalled: the deadline ends the operation, the buffer waits for NIXL."""
    # UCX reads its environment once a process, so both ends are other processes here.
    size = 24 << 20
    async with remote("source", env=TCP) as source, remote("target", env=TCP) as target:
        for number in (1, 2):
            record = await source.ask("expose", number=number, size=4096)
            assert await target.ask("read", number=number, record=record, seed=number)
        record = await source.ask("expose", number=3, size=size, lease=20.0)
        await target.halt_before("check")
        await target.ask("begin_read", number=3, record=record, seed=3, deadline=1.0)
        await target.until_halted()
        source.signal(signal.SIGSTOP)
        await target.ask("go")
        with pytest.raises(nc.DeadlineExceeded):
            await target.ask("wait", number=3)
        counters = await target.ask("counters")
        assert counters["quarantined"] == 1 and counters["pool_used_bytes"] >= size
        if end == "goes on":
            source.signal(signal.SIGCONT)
        else:
            source.kill()
        await target.ask("wait_released", number=3)
        counters = await target.ask("counters")
        assert counters["quarantined"] == counters["handles"] == 0


async def test_in_flight_over_tcp_the_reader_is_killed() -> None:
    """The exposer's memory is being read when the reader goes: it comes back once the peer is missed."""
    async with remote("source", env=TCP) as source, remote("target", env=TCP) as target:
        for number in (1, 2):
            record = await source.ask("expose", number=number, size=4096)
            assert await target.ask("read", number=number, record=record, seed=number)
        record = await source.ask("expose", number=3, size=24 << 20, lease=20.0)
        await target.halt_before("check")
        await target.ask("begin_read", number=3, record=record, seed=3, deadline=20.0)
        await target.until_halted()
        target.kill()
        with pytest.raises(nc.PeerLost):
            await source.ask("wait", number=3)
        await source.ask("wait_released", number=3)
        counters = await source.ask("counters")
        assert counters["leases"] == counters["quarantined"] == counters["pool_used_bytes"] == counters["peers"] == 0
