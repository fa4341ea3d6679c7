"""How close the data plane comes to raw NIXL: two processes, both measured in the same run, in turns.

    python -m benchmarks.transfer                                    host memory, 64 KiB to 256 MiB
    python -m benchmarks.transfer --pairs cuda:0,cuda:1 cpu,cuda:0   devices of this process and of the other one
    python -m benchmarks.transfer --against dynamo                   dynamo.nixl_connect as well, where it is installed
    python -m benchmarks.transfer --json out.json --plot out.svg --page page.md

*Raw* is NIXL used as well as it can be: descriptors prepared once, one transfer handle posted again and again, a
spinning poll. *Ours* is what an application does: ``begin_read`` or ``begin_write`` with a fresh record each time,
until ``wait_for_completion`` returns, on the event loop. Making and carrying the record is the other side's and not in
the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plot_transfer, transfer_dynamo, transfer_loop, transfer_page
from benchmarks.transfer_memory import Memory, copy_ceiling, cuda_of, touch
from benchmarks.transfer_other import other_process
from benchmarks.transfer_points import DYNAMO_SIZES, MIB, SIZES, Point, compare, points, row
from benchmarks.transfer_raw import Raw
from components.nixl_connect import Connector, Descriptor, RdmaMetadata

SILENCE_SECONDS = 180.0
DEADLINE_SECONDS = 120.0
TURNS = 4
"""Raw and ours take turns, so that what else the machine does falls on both."""


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.steps: list[tuple[float, float]] = []
        self.began = time.perf_counter()
        self.load = os.getloadavg()[0]
        self.ticks = processor_ticks()

    def result(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds = usage.ru_utime + usage.ru_stime
        return {
            "command": " ".join(["python -m benchmarks.transfer", *sys.argv[1:]]),
            "machine": machine(),
            "load_before": round(self.load, 2),
            "others": others(self.ticks, processor_ticks()),
            "seconds": round(time.perf_counter() - self.began, 1),
            "cpu_seconds": round(seconds, 1),
            "event_loop": transfer_loop.summary(self.steps),
            "rows": self.rows,
            "compared": compare(self.rows),
        }

    def save(self) -> None:
        """After every point: a run that is cut off leaves what it has."""
        if self.options.json:
            self.options.json.write_text(json.dumps(self.result(), indent=1) + "\n")

    def points(self, here: str, there: str) -> list[Point]:
        options = self.options
        found = points(here, there, options.sizes, quick=options.quick, most=options.max_bytes)
        if "dynamo" in options.against:
            also = [Point(here, there, kind, size) for kind in ("read", "write") for size in DYNAMO_SIZES]
            found += [point for point in also if point not in found]
        return found

    def start_other(self, here: str, there: str, size: int) -> Any:
        """The other process, and ``self.pipe`` to it; ``between_hosts`` has it on another machine."""
        context = multiprocessing.get_context("spawn")
        self.pipe: Any
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=other_process, args=(theirs, here, there, size, self.options.against))
        process.start()
        return process

    async def pair(self, here: str, there: str) -> None:
        measured = self.points(here, there)
        size = max(point.size * point.in_flight for point in measured)
        process = self.start_other(here, there, size)
        try:
            touch(here)
            memory = Memory(here, size)
            raw = Raw("raw-here", memory)
            raw.load(await self.receive())
            async with Connector("here", device=cuda_of(here, there)) as connector:
                whole = Descriptor(memory.data)
                await whole.register_memory(connector)
                await self.receive()
                await self.correct(connector, whole, memory, measured[0])
                for point in measured:
                    await self.measure(connector, whole, raw, point)
                if "idle" in self.options.extra:
                    await self.idle(connector)
            self.pipe.send(None)
            if "dynamo" in self.options.against:
                theirs = transfer_dynamo.new_connector()
                for point in measured:
                    if point.size in DYNAMO_SIZES and point.buffers == point.in_flight == 1:
                        self.add("dynamo", point, await transfer_dynamo.measure(self.ask, memory, point, theirs))
                self.pipe.send(None)
            process.join(30)
        finally:
            process.kill()

    async def receive(self) -> Any:
        def wait() -> Any:
            if not self.pipe.poll(SILENCE_SECONDS):
                raise TimeoutError("the other process is silent")
            return self.pipe.recv()

        return await asyncio.get_running_loop().run_in_executor(None, wait)

    async def ask(self, *command: Any) -> Any:
        self.pipe.send(command)
        return await self.receive()

    async def records(self, point: Point, count: int) -> list[RdmaMetadata]:
        return [RdmaMetadata.model_validate_json(text) for text in await self.ask("expose", point, count)]

    async def correct(self, connector: Connector, whole: Descriptor, memory: Memory, point: Point) -> None:
        """Bytes first: what is fast and wrong is not measured."""
        size = min(MIB, point.size)
        for kind, there, here in (("read", 17, 0), ("write", 0, 23)):
            await self.ask("fill", there)
            memory.fill(here)
            record = (await self.records(Point(point.here, point.there, kind, size), 1))[0]
            await self.move(connector, kind, record, [whole.part(0, size)])
            await self.receive()
            memory.wait()
            good = memory.same_as(17, size) if kind == "read" else await self.ask("check", 23, size)
            if not good:
                raise SystemExit(f"{kind} {point.here} {point.there}: the bytes are wrong")

    async def move(self, connector: Connector, kind: str, record: RdmaMetadata, local: list[Descriptor]) -> str:
        """One operation from begin to end; the lane it took."""
        operation = (
            await connector.begin_read(record, local, deadline=DEADLINE_SECONDS)
            if kind == "read"
            else await connector.begin_write(local, record, deadline=DEADLINE_SECONDS)
        )
        await operation.wait_for_completion()
        return str(operation.lane)

    async def measure(self, connector: Connector, whole: Descriptor, raw: Raw, point: Point) -> None:
        fitting = int(self.options.bytes_per_point // (point.size * point.in_flight))
        each = max(3, min(self.options.rounds, fitting) // TURNS)
        await self.raw(raw, point, 2)
        await self.ours(connector, whole, point, 2)
        theirs: list[float] = []
        mine: list[float] = []
        lane = ""
        for _ in range(TURNS):
            theirs += await self.raw(raw, point, each)
            seconds, lane = await self.ours(connector, whole, point, each)
            mine += seconds
        await self.ours(connector, whole, point, each, watch=transfer_loop.watched(self.steps))  # these do not count
        self.add("raw", point, theirs)
        self.add("ours", point, mine, lane=lane)

    async def raw(self, raw: Raw, point: Point, rounds: int) -> list[float]:
        await self.ask("raw")
        times = raw.measure(point, rounds)
        await self.ask("quiet")
        return times

    async def ours(
        self,
        connector: Connector,
        whole: Descriptor,
        point: Point,
        rounds: int,
        watch: contextlib.AbstractContextManager[None] | None = None,
    ) -> tuple[list[float], str]:
        """Seconds of each round, and the lane; ``watch`` is around the rounds, and costs time."""
        records = await self.records(point, rounds * point.in_flight)
        slots = [
            [whole.part(slot * point.size + i * point.piece, point.piece) for i in range(point.buffers)]
            for slot in range(point.in_flight)
        ]
        times, lane = [], ""
        with watch or contextlib.nullcontext():
            for index in range(rounds):
                batch = records[index * point.in_flight : (index + 1) * point.in_flight]
                start = time.perf_counter()
                if point.in_flight == 1:
                    lane = await self.move(connector, point.kind, batch[0], slots[0])
                else:
                    moves = (self.move(connector, point.kind, *pair) for pair in zip(batch, slots, strict=True))
                    lane = (await asyncio.gather(*moves))[0]
                times.append(time.perf_counter() - start)
        await self.receive()
        return times, lane

    async def idle(self, connector: Connector) -> None:
        """Share of a core that two connectors cost while nothing happens: with nothing exposed, and with one lease."""
        for leases in (0, 1):
            held = [
                await connector.create_readable(Descriptor(np.zeros(4096, np.uint8)), lease=60.0) for _ in range(leases)
            ]
            await asyncio.sleep(1.0)
            before, start = time.process_time(), time.perf_counter()
            await asyncio.sleep(self.options.idle_seconds)
            share = (time.process_time() - before) / (time.perf_counter() - start)
            self.rows.append({"what": "idle", "leases": leases, "share_of_a_core": round(share, 5)})
            print(f"idle with {leases} lease(s): {share:.3%} of a core", flush=True)
            for operation in held:
                operation.cancel()

    def add(self, what: str, point: Point, seconds: Sequence[float], **more: Any) -> None:
        made = row(what, point, seconds, **more)
        self.rows.append(made)
        note = f"  {point.label}" if point.label else ""
        print(
            f"{what:6} {point.kind:5} {point.here:>7}<->{point.there:7} {point.size:>13,} B x{point.buffers:<3}"
            f" in flight {point.in_flight:<3} p50 {made['p50_us']:>10,.1f} us  p99 {made['p99_us']:>10,.1f} us "
            f" {made['GB_per_s']:>9,.2f} GB/s{note}",
            flush=True,
        )
        self.save()


def processor_ticks() -> list[int]:
    """Of all cores together, by what they were spent on; nothing where there is no /proc."""
    with contextlib.suppress(OSError), Path("/proc/stat").open() as file:
        return [int(each) for each in file.readline().split()[1:9]]
    return []


def others(before: Sequence[int], after: Sequence[int]) -> float | None:
    """The share of the cores' time that was not this benchmark's: other processes, and the host of a virtual machine.
    The other process counts as part of it once it has ended."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    if not spent:
        return None
    idle, ticks = spent[3] + spent[4], os.sysconf("SC_CLK_TCK")
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    mine = sum(usage.ru_utime + usage.ru_stime for usage in usages) * ticks
    return round(max(0.0, sum(spent) - idle - mine) / max(1, sum(spent)), 3)


def machine() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {"cpus": len(os.sched_getaffinity(0)), "processor": processor, "python": platform.python_version()}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="triptych bench transfer", description=__doc__.split("\n")[0])
    made.add_argument("--pairs", nargs="+", default=["cpu,cpu"], metavar="HERE,THERE", help="cpu, cuda:N")
    made.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes of one operation")
    made.add_argument("--max-bytes", type=int, default=256 * MIB, help="leave larger ones out")
    made.add_argument("--rounds", type=int, default=400, help="operations a point, at most")
    made.add_argument("--bytes-per-point", type=float, default=4e9, help="bytes a point, about")
    made.add_argument("--quick", action="store_true", help="one buffer, one in flight")
    made.add_argument("--copy", action="store_true", help="measure a plain copy between the devices as well")
    made.add_argument(
        "--against", nargs="*", default=[], choices=["dynamo"], help="another implementation, if installed"
    )
    made.add_argument("--extra", nargs="*", default=["idle"], choices=["idle"], help="what else to measure")
    made.add_argument("--idle-seconds", type=float, default=5.0)
    made.add_argument("--json", type=Path, help="write every number there")
    made.add_argument("--plot", type=Path, metavar="SVG", help="draw a picture there")
    made.add_argument("--page", type=Path, metavar="MD", help="write a table between that page's marks")
    return made


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    bench = Bench(options)
    for pair in options.pairs:
        here, there = pair.split(",")
        asyncio.run(bench.pair(here, there))
        if options.copy and cuda_of(here, there):
            bench.rows += copy_ceiling(here, there, [s for s in options.sizes if s <= options.max_bytes])
    bench.save()
    result = bench.result()
    print("\n  here<->there kind          bytes  bufs  fly      raw us     ours us   added us   ratio")
    for line in result["compared"]:
        print(
            f"{line['here']:>7}<->{line['there']:7} {line['kind']:5} {line['size']:>13,} {line['buffers']:>4} "
            f"{line['in_flight']:>4} {line['raw_us']:>11,.1f} {line['ours_us']:>11,.1f} {line['added_us']:>10,.1f}"
            f" {line['ratio']:>7.2f}" + (f"  dynamo x{line['times_faster']}" if "times_faster" in line else "")
        )
    print(f"event loop steps: {result['event_loop']}")
    if options.plot:
        options.plot.write_text(plot_transfer.draw(result))
    if options.page:
        transfer_page.write(options.page, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
