"""How close the data plane comes to raw NIXL: two processes, both measured in the same run, in turns.

    python -m benchmarks.transfer                                    host memory, 64 KiB to 256 MiB
    python -m benchmarks.transfer --pairs cuda:0,cuda:1 cpu,cuda:0   devices of this process and of the other one
    python -m benchmarks.transfer --against dynamo                   dynamo.nixl_connect as well, where it is installed
    python -m benchmarks.transfer --json out.json --plot out.png

*Raw* is NIXL used as well as it can be: descriptors prepared once, one transfer handle posted again and again, a
spinning poll. *Ours* is what an application does: ``begin_read`` or ``begin_write`` with a fresh record each time,
until
``wait_for_completion`` returns, on the event loop. Making and carrying the record is the other side's and not in the
time.
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
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
KV_7B = (2 * 28, 1500 * 4 * 128 * 2)
"""Buffers and bytes of each: keys and values of 28 layers, 1,500 tokens, 4 KV heads of 128, two bytes each."""


@dataclass(frozen=True)
class Point:
    """What is measured. ``size`` is the bytes of one operation, cut into ``buffers`` equal pieces."""

    here: str
    there: str
    kind: str
    size: int
    buffers: int = 1
    in_flight: int = 1
    label: str = ""

    @property
    def piece(self) -> int:
        return self.size // self.buffers


@dataclass
class Timing:
    """Seconds of a round: one operation, or ``in_flight`` of them from first begin to last end."""

    seconds: list[float]

    def row(self, point: Point) -> dict[str, float]:
        ordered = sorted(self.seconds)
        median = ordered[len(ordered) // 2]
        return {
            "n": len(ordered),
            "p50_us": round(median * 1e6, 1),
            "p99_us": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e6, 1),
            "GB_per_s": round(point.size * point.in_flight / median / 1e9, 3),
        }


class Memory:
    """Bytes on a device, as both measures need them."""

    def __init__(self, device: str, size: int) -> None:
        self.device = device
        if device == "cpu":
            # Pages of 2 MiB, as the pool has them, so that neither side of the comparison pays for small ones.
            import mmap

            memory = mmap.mmap(-1, size)
            memory.madvise(mmap.MADV_HUGEPAGE)
            self.data: Any = np.frombuffer(memory, dtype=np.uint8)
            self.data[:] = (
                np.random.default_rng(1).integers(0, 256, 1 << 16, dtype=np.uint8).repeat(-(-size >> 16))[:size]
            )
            self.ptr, self.index, self.kind = self.data.ctypes.data, 0, "DRAM"
        else:
            import torch

            self.data = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
            torch.cuda.synchronize(device)
            self.ptr, self.index, self.kind = self.data.data_ptr(), self.data.get_device(), "VRAM"

    def spans(self, offset: int, piece: int, count: int) -> np.ndarray:
        return np.array([(self.ptr + offset + i * piece, piece, self.index) for i in range(count)], dtype=np.uint64)

    def fill(self, value: int) -> None:
        self.data[:] = value
        self.wait()

    def wait(self) -> None:
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)

    def same_as(self, value: int, size: int) -> bool:
        return bool((self.data[:size] == value).all())


def touch(device: str) -> None:
    """Make the device's context current on this thread: raw NIXL needs it as much as anybody."""
    if device != "cpu":
        import torch

        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)


def cuda_of(*devices: str) -> str | None:
    return next((device for device in devices if device != "cpu"), None)


# raw NIXL


class Raw:
    def __init__(self, name: str, memory: Memory) -> None:
        from components.nixl_connect.agent import load_nixl

        api, _ = load_nixl()
        touch(memory.device)
        if memory.device != "cpu":
            os.environ.setdefault("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "y")
        self.memory = memory
        self.agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        self.registered = self.agent.register_memory(
            [(memory.ptr, int(memory.data.nbytes), memory.index, "")], memory.kind
        )

    def describe(self) -> tuple[bytes, int, int, str]:
        return self.agent.get_agent_metadata(), self.memory.ptr, self.memory.index, self.memory.kind

    def load(self, peer: tuple[bytes, int, int, str]) -> None:
        metadata, self.remote_ptr, self.remote_index, self.remote_kind = peer
        name = self.agent.add_remote_agent(metadata)
        self.peer = name.decode() if isinstance(name, bytes) else name

    def progress(self, until: threading.Event) -> None:
        """The passive end has to look now and then: to be connected to, and all the time over TCP."""
        while not until.is_set():
            self.agent.get_new_notifs()
            time.sleep(50e-6)

    def measure(self, point: Point, rounds: int) -> list[float]:
        agent, handles, lists = self.agent, [], []
        for slot in range(point.in_flight):
            local = self.memory.spans(slot * point.size, point.piece, point.buffers)
            base = self.remote_ptr + slot * point.size
            remote = np.array(
                [(base + i * point.piece, point.piece, self.remote_index) for i in range(point.buffers)],
                dtype=np.uint64,
            )
            here = agent.prep_xfer_dlist("NIXL_INIT_AGENT", local, self.memory.kind)
            there = agent.prep_xfer_dlist(self.peer, remote, self.remote_kind)
            indices = np.arange(point.buffers, dtype=np.int32)
            handles.append(agent.make_prepped_xfer(point.kind.upper(), here, indices, there, indices))
            lists += [here, there]
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            pending = [handle for handle in handles if agent.transfer(handle) == "PROC"]
            while pending:
                pending = [handle for handle in pending if agent.check_xfer_state(handle) == "PROC"]
            times.append(time.perf_counter() - start)
        for item in (*handles, *lists):
            item.release()
        return times


# the other process


def other_process(pipe: Any, here: str, there: str, size: int, against: list[str]) -> None:
    """Exposes memory of device ``there`` as it is asked to. Quiet while raw NIXL is measured."""
    from components.nixl_connect import Connector, Descriptor

    touch(there)
    memory = Memory(there, size)
    raw = Raw("raw-there", memory)
    pipe.send(raw.describe())

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        async with Connector("there", device=cuda_of(there, here)) as connector:
            whole = Descriptor(memory.data)
            await whole.register_memory(connector)
            pipe.send("ready")
            while (request := await loop.run_in_executor(None, pipe.recv)) is not None:
                command, *arguments = request
                if command == "expose":
                    point, count = arguments
                    operations = []
                    for index in range(count):
                        base = index % point.in_flight * point.size
                        parts = [whole.part(base + i * point.piece, point.piece) for i in range(point.buffers)]
                        create = connector.create_readable if point.kind == "read" else connector.create_writable
                        operations.append(await create(parts, lease=120.0))
                    pipe.send([operation.metadata().model_dump_json() for operation in operations])
                    await asyncio.gather(*(operation.wait_for_completion() for operation in operations))
                    pipe.send("done")
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
                elif command == "usage":
                    usage = resource.getrusage(resource.RUSAGE_SELF)
                    pipe.send(usage.ru_utime + usage.ru_stime)

    async def serve_dynamo() -> None:
        import dynamo.nixl_connect as theirs

        loop = asyncio.get_running_loop()
        connector = theirs.Connector()
        while (request := await loop.run_in_executor(None, pipe.recv)) is not None:
            point = request[1]
            data = memory.data if there != "cpu" else _as_tensor(memory.data)
            parts = [theirs.Descriptor(data[i * point.piece : (i + 1) * point.piece]) for i in range(point.buffers)]
            local = parts if len(parts) > 1 else parts[0]
            create = connector.create_readable if point.kind == "read" else connector.create_writable
            with await create(local) as operation:
                pipe.send(operation.metadata().model_dump_json())
                await operation.wait_for_completion()

    asyncio.run(serve())
    if "dynamo" in against:
        asyncio.run(serve_dynamo())


def _as_tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


# this process


class Loop:
    """How long each step of the event loop took: what a blocking call would show."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        original = asyncio.events.Handle._run

        def run(handle: asyncio.events.Handle) -> None:
            start = time.perf_counter()
            original(handle)
            self.steps.append(time.perf_counter() - start)

        asyncio.events.Handle._run = run  # type: ignore[method-assign]
        try:
            yield
        finally:
            asyncio.events.Handle._run = original  # type: ignore[method-assign]

    def row(self) -> dict[str, float]:
        ordered = sorted(self.steps) or [0.0]
        at = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
        values = {f"{name}_us": round(ordered[int(len(ordered) * share)] * 1e6, 1) for name, share in at.items()}
        return {"steps": len(ordered), **values, "max_us": round(ordered[-1] * 1e6, 1)}


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.loop_steps = Loop()
        self.began = time.perf_counter()

    def result(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "command": " ".join(sys.argv),
            "machine": {"cpus": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()},
            "seconds": round(time.perf_counter() - self.began, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "event_loop": self.loop_steps.row(),
            "rows": self.rows,
            "compared": compare(self.rows),
        }

    def save(self) -> None:
        """After every point: a run that is cut off leaves what it has."""
        if self.options.json:
            self.options.json.write_text(json.dumps(self.result(), indent=1))

    def points(self, here: str, there: str) -> list[Point]:
        sizes = [size for size in self.options.sizes if size <= self.options.max_bytes]
        found = [Point(here, there, kind, size) for kind in ("read", "write") for size in sizes]
        if not self.options.quick:
            middle = [size for size in sizes if size in (MIB, 64 * MIB)]
            found += [
                Point(here, there, kind, s, buffers=n) for kind in ("read", "write") for s in middle for n in (8, 64)
            ]
            small = [size for size in sizes if size in (64 * KIB, MIB, 4 * MIB)]
            found += [Point(here, there, kind, s, in_flight=16) for kind in ("read", "write") for s in small]
        buffers, piece = KV_7B
        if buffers * piece <= self.options.max_bytes:
            found.append(Point(here, there, "write", buffers * piece, buffers=buffers, label="KV of a 7B model"))
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
        from components.nixl_connect import Connector, Descriptor

        points = self.points(here, there)
        size = max(point.size * point.in_flight for point in points)
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
                await self.correct(connector, whole, memory, points[0])
                for point in points:
                    await self.measure(connector, whole, raw, point)
                if "idle" in self.options.extra:
                    await self.idle(connector)
            self.pipe.send(None)
            if "dynamo" in self.options.against:
                await self.dynamo(memory, [p for p in points if p.in_flight == 1 and p.size <= 64 * MIB])
                self.pipe.send(None)
            process.join(30)
        finally:
            process.kill()

    async def receive(self) -> Any:
        def wait() -> Any:
            if not self.pipe.poll(180):
                raise TimeoutError("the other process is silent")
            return self.pipe.recv()

        return await asyncio.get_running_loop().run_in_executor(None, wait)

    async def ask(self, *command: Any) -> Any:
        self.pipe.send(command)
        return await self.receive()

    async def records(self, point: Point, count: int) -> list[Any]:
        from components.nixl_connect import RdmaMetadata

        return [RdmaMetadata.model_validate_json(text) for text in await self.ask("expose", point, count)]

    async def correct(self, connector: Any, whole: Any, memory: Memory, point: Point) -> None:
        """Bytes first: what is fast and wrong is not measured."""
        size = min(MIB, point.size)
        for kind, there, here in (("read", 17, 0), ("write", 0, 23)):
            await self.ask("fill", there)
            memory.fill(here)
            record = (await self.records(Point(point.here, point.there, kind, size), 1))[0]
            local = whole.part(0, size)
            begin = connector.begin_read(record, local) if kind == "read" else connector.begin_write(local, record)
            await (await begin).wait_for_completion()
            await self.receive()
            memory.wait()
            good = memory.same_as(17, size) if kind == "read" else await self.ask("check", 23, size)
            if not good:
                raise SystemExit(f"{kind} {point.here} {point.there}: the bytes are wrong")

    async def measure(self, connector: Any, whole: Any, raw: Raw, point: Point) -> None:
        each = max(
            3, min(self.options.rounds, int(self.options.bytes_per_point // (point.size * point.in_flight))) // 4
        )
        await self.raw(raw, point, 2)
        await self.ours(connector, whole, point, 2)
        theirs, mine, lane = [], [], ""
        for _ in range(4):
            theirs += await self.raw(raw, point, each)
            seconds, lane = await self.ours(connector, whole, point, each)
            mine += seconds
        self.add(point, "raw", Timing(theirs))
        self.add(point, "ours", Timing(mine), lane=lane)
        self.save()

    async def raw(self, raw: Raw, point: Point, rounds: int) -> list[float]:
        await self.ask("raw")
        times = raw.measure(point, rounds)
        await self.ask("quiet")
        return times

    async def ours(self, connector: Any, whole: Any, point: Point, rounds: int) -> tuple[list[float], str]:
        records = await self.records(point, rounds * point.in_flight)
        locals_ = [
            [whole.part(slot * point.size + i * point.piece, point.piece) for i in range(point.buffers)]
            for slot in range(point.in_flight)
        ]

        async def one(record: Any, local: Any) -> str:
            if point.kind == "read":
                operation = await connector.begin_read(record, local, deadline=120.0)
            else:
                operation = await connector.begin_write(local, record, deadline=120.0)
            await operation.wait_for_completion()
            return str(operation.lane)

        times, lane = [], ""
        with self.loop_steps.watched():
            for index in range(rounds):
                batch = records[index * point.in_flight : (index + 1) * point.in_flight]
                start = time.perf_counter()
                if point.in_flight == 1:
                    lane = await one(batch[0], locals_[0])
                else:
                    lane = (await asyncio.gather(*map(one, batch, locals_)))[0]
                times.append(time.perf_counter() - start)
        await self.receive()
        return times, lane

    async def dynamo(self, memory: Memory, points: list[Point]) -> None:
        import dynamo.nixl_connect as theirs

        connector = theirs.Connector()
        data = memory.data if memory.device != "cpu" else _as_tensor(memory.data)
        for point in points:
            times = []
            for _ in range(min(self.options.rounds, 40)):
                record = theirs.RdmaMetadata.model_validate_json(await self.ask("expose", point))
                start = time.perf_counter()
                parts = [theirs.Descriptor(data[i * point.piece : (i + 1) * point.piece]) for i in range(point.buffers)]
                local = parts if len(parts) > 1 else parts[0]
                begin = (
                    connector.begin_read(record, local)
                    if point.kind == "read"
                    else connector.begin_write(local, record)
                )
                with await begin as operation:
                    await operation.wait_for_completion()
                times.append(time.perf_counter() - start)
            self.add(point, "dynamo", Timing(times[2:]))

    async def idle(self, connector: Any) -> None:
        """Share of a core that two connectors cost while nothing happens: with nothing exposed, and with one lease."""
        from components.nixl_connect import Descriptor

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

    def add(self, point: Point, what: str, timing: Timing, **more: Any) -> None:
        row = {"what": what, **asdict(point), **timing.row(point), **more}
        self.rows.append(row)
        note = f"  {point.label}" if point.label else ""
        print(
            f"{what:6} {point.kind:5} {point.here:>7}<->{point.there:7} {point.size:>11,} B x{point.buffers:<3}"
            f" in flight {point.in_flight:<3} p50 {row['p50_us']:>10,.1f} us  p99 {row['p99_us']:>10,.1f} us "
            f" {row['GB_per_s']:>9,.2f} GB/s{note}",
            flush=True,
        )


def copy_ceiling(here: str, there: str, sizes: list[int]) -> list[dict[str, Any]]:
    """A plain copy between the devices in one process: what the link gives."""
    import torch

    rows = []
    for size in sizes:
        source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=there)
        target = torch.empty(size, dtype=torch.uint8, device=here, pin_memory=here == "cpu")
        times = []
        for _ in range(12):
            torch.cuda.synchronize(here if here != "cpu" else there)
            start = time.perf_counter()
            target.copy_(source)
            for device in {here, there} - {"cpu"}:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        point = Point(here, there, "copy", size)
        rows.append({"what": "copy", **asdict(point), **Timing(times[2:]).row(point)})
        print(f"copy   {here}<-{there} {size:>11,} B  {rows[-1]['GB_per_s']:,.1f} GB/s", flush=True)
    return rows


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside raw, a line a point."""
    keys = ("here", "there", "kind", "size", "buffers", "in_flight", "label")
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if "size" in row:
            table.setdefault(tuple(row[key] for key in keys), {})[row["what"]] = row
    lines = []
    for key, found in table.items():
        if {"raw", "ours"} <= found.keys():
            raw, ours = found["raw"]["p50_us"], found["ours"]["p50_us"]
            line = dict(zip(keys, key, strict=True)) | {"raw_us": raw, "ours_us": ours}
            line |= {"added_us": round(ours - raw, 1), "ratio": round(ours / raw, 3)}
            if "dynamo" in found:
                line |= {
                    "dynamo_us": found["dynamo"]["p50_us"],
                    "times_faster": round(found["dynamo"]["p50_us"] / ours, 1),
                }
            lines.append(line)
    return lines


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="triptych bench transfer", description=__doc__.split("\n")[0])
    made.add_argument("--pairs", nargs="+", default=["cpu,cpu"], metavar="HERE,THERE", help="cpu, cuda:N")
    sizes = [64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB]
    made.add_argument("--sizes", type=int, nargs="+", default=sizes, help="bytes of one operation")
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
    made.add_argument("--plot", type=Path, help="draw a picture there (needs matplotlib)")
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
            f"{line['here']:>7}<->{line['there']:7} {line['kind']:5} {line['size']:>11,} {line['buffers']:>4} "
            f"{line['in_flight']:>4} {line['raw_us']:>11,.1f} {line['ours_us']:>11,.1f} {line['added_us']:>10,.1f}"
            f" {line['ratio']:>7.2f}" + (f"  dynamo x{line['times_faster']}" if "times_faster" in line else "")
        )
    print(f"event loop steps: {result['event_loop']}")
    if options.plot:
        from benchmarks.plot_transfer import draw

        draw(result, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
