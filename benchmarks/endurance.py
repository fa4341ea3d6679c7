"""Does the data plane stay as small as it began? Very many transfers between two processes, both watched.

    python -m benchmarks.endurance                            200,000 transfers of pool memory, then ten idle seconds
    python -m benchmarks.endurance --memory fresh             of memory that is new each time, and so registered anew
    python -m benchmarks.endurance --transfers 20000 --sizes 65536 4194304 --json out.json

Reads and writes take turns, and so do the sizes; ``--in-flight`` of them run at once. Memory is *flat* when neither
process has grown by more than ``--allow`` bytes from a tenth of the transfers to the last one, and when both have no
lease, handle, registration or pool byte more. *Idle* is the processor time of a process whose connector has a peer and
nothing to do. The exit status is 1 when memory is not flat.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from components.nixl_connect import Connector, Counters, Descriptor, Pool, parse_record

KIB, MIB = 1 << 10, 1 << 20
Buffer = tuple[Descriptor, Callable[[], None]]
"""Memory, and what lets go of it"""


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

    transfers: int
    rss: int
    """Resident bytes; a pool's are there from the beginning"""
    leases: int
    quarantined: int
    in_flight: int
    handles: int
    registrations: int
    peers: int
    pool_used_bytes: int
    peer_loads_total: int
    regions_known: int
    """Of the peer's registered memory, here"""

    def at_rest(self) -> bool:
        return not (self.leases or self.quarantined or self.in_flight or self.handles or self.pool_used_bytes)


def sample(connector: Connector, transfers: int) -> Sample:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    rss = next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmRSS"))
    counters: Counters = connector.counters()
    names = Sample.__dataclass_fields__.keys() & Counters.__dataclass_fields__.keys() - {"transfers"}
    core = connector._pump.core
    known = 0 if core is None else sum(len(peer.regions) for peer in core.peers)
    return Sample(transfers, rss, regions_known=known, **{name: getattr(counters, name) for name in names})


def buffer_of(pool: Pool, memory: str, size: int) -> Buffer:
    if memory == "pool":
        slot = pool.allocate(size)
        return slot.descriptor, slot.release
    return Descriptor(np.zeros(size, np.uint8)), lambda: None


async def idle_share(seconds: float) -> float:
    """Processor time of this process while its connector has nothing to do, as a share of one core."""
    start, used = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.monotonic() - start)


async def expose(pipe: Connection, pool_bytes: int, memory: str) -> None:
    """The other process: records on request, and what it looks like from inside."""
    loop = asyncio.get_running_loop()
    done = 0
    async with Connector("endurance-exposer") as connector:
        pool = await connector.create_pool(pool_bytes)
        while (request := await loop.run_in_executor(None, _receive, pipe)) is not None:
            if "idle" in request:
                pipe.send_bytes(json.dumps(await idle_share(request["idle"])).encode())
            elif "sizes" in request:
                make = connector.create_readable if request["kind"] == "read" else connector.create_writable
                operations = []
                for size in request["sizes"]:
                    descriptor, let_go = buffer_of(pool, memory, size)
                    operations.append(await make(descriptor))
                    let_go()
                del descriptor, let_go
                pipe.send_bytes(json.dumps([one.metadata().model_dump_json() for one in operations]).encode())
                await asyncio.gather(*(one.wait_for_completion() for one in operations))
                done += len(operations)
                operations.clear()
            else:
                pipe.send_bytes(json.dumps(asdict(sample(connector, done))).encode())


def _receive(pipe: Connection) -> dict[str, Any] | None:
    try:
        request: dict[str, Any] = json.loads(pipe.recv_bytes())
    except EOFError:
        return None
    return request


def _expose(pipe: Connection, pool_bytes: int, memory: str) -> None:
    asyncio.run(expose(pipe, pool_bytes, memory))


class Exposer:
    def __init__(self, pool_bytes: int, memory: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_expose, args=(theirs, pool_bytes, memory), daemon=True)
        self._process.start()
        theirs.close()

    async def ask(self, **request: Any) -> Any:
        self._pipe.send_bytes(json.dumps(request).encode())
        return json.loads(await asyncio.to_thread(self._pipe.recv_bytes))

    async def stop(self) -> None:
        self._pipe.close()
        await asyncio.to_thread(self._process.join, 20)


async def transfer(connector: Connector, pool: Pool, memory: str, kind: str, text: str) -> None:
    record = parse_record(text)
    descriptor, let_go = buffer_of(pool, memory, record.size)
    if kind == "read":
        operation: Any = await connector.begin_read(record, descriptor)
    else:
        operation = await connector.begin_write(descriptor, record)
    let_go()
    await operation.wait_for_completion()


@dataclass(frozen=True)
class Side:
    name: str
    samples: list[Sample]
    idle: float
    growth: int
    flat: bool


async def measure(arguments: argparse.Namespace) -> list[Side]:
    sizes, in_flight, total = arguments.sizes, arguments.in_flight, arguments.transfers
    pool_bytes = 2 * in_flight * max(sizes) + MIB
    exposer = Exposer(pool_bytes, arguments.memory)
    here: list[Sample] = []
    there: list[Sample] = []
    async with Connector("endurance-user") as connector:
        pool = await connector.create_pool(pool_bytes)
        done, start = 0, time.monotonic()
        points = [0, *sorted({total * tenth // 20 // in_flight * in_flight for tenth in range(1, 20)}), total]
        while True:
            if done >= points[len(here)]:
                here.append(sample(connector, done))
                there.append(replace(Sample(**await exposer.ask()), transfers=done))
                _progress(done, total, time.monotonic() - start, here[-1], there[-1])
            if done >= total:
                break
            kind = ("read", "write")[done // in_flight % 2]
            count = min(in_flight, total - done)
            texts = await exposer.ask(kind=kind, sizes=[sizes[(done + i) % len(sizes)] for i in range(count)])
            await asyncio.gather(*(transfer(connector, pool, arguments.memory, kind, text) for text in texts))
            done += count
        theirs = asyncio.ensure_future(exposer.ask(idle=arguments.idle))
        idle_here, idle_there = await idle_share(arguments.idle), await theirs
    await exposer.stop()
    return [_side("user", here, idle_here, arguments.allow), _side("exposer", there, idle_there, arguments.allow)]


def _side(name: str, samples: list[Sample], idle: float, allow: int) -> Side:
    warm = next(one for one in samples if one.transfers * 10 >= samples[-1].transfers)
    growth = samples[-1].rss - warm.rss
    rest = samples[-1].at_rest() and samples[-1].registrations <= warm.registrations
    return Side(name, samples, round(idle, 5), growth, growth <= allow and rest)


def _progress(done: int, total: int, seconds: float, here: Sample, there: Sample) -> None:
    rss = " ".join(f"{one.rss / MIB:7.1f} MiB, {one.registrations} regions" for one in (here, there))
    print(
        f"{done:>8}/{total} {seconds:6.1f} s   user {rss.replace(' regions', ' regions; exposer', 1)}", file=sys.stderr
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfers", type=int, default=200_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64 * KIB, 2 * MIB], metavar="BYTES")
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--memory", choices=["pool", "fresh"], default="pool")
    parser.add_argument("--allow", type=int, default=4 * MIB, metavar="BYTES", help="growth that still counts as flat")
    parser.add_argument("--idle", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    sides = asyncio.run(measure(arguments))
    for side in sides:
        marks = {10_000, 100_000, side.samples[-1].transfers}
        rss = ", ".join(f"{one.rss / MIB:.1f} at {one.transfers}" for one in side.samples if one.transfers in marks)
        verdict = "flat" if side.flat else "NOT flat"
        print(
            f"{side.name}: {verdict}, {side.growth / KIB:+.0f} KiB; MiB resident {rss}; idle {side.idle:.2%} of a core"
        )
    if arguments.json is not None:
        settings = {key: value for key, value in vars(arguments).items() if key != "json"}
        arguments.json.write_text(
            json.dumps({"settings": settings, "sides": [asdict(side) for side in sides]}, indent=1)
        )
    return 0 if all(side.flat for side in sides) else 1


if __name__ == "__main__":
    sys.exit(main())
