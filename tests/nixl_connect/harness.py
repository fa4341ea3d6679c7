"""A second process with a connector of its own, driven by commands: every test here runs real NIXL between real
processes.

The test keeps a ``Remote``; the other process runs ``_serve``. A command is a coroutine of ``Commands``; an error
comes back as the same typed error.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from components import nixl_connect as nc
from components.nixl_connect.wire import Kind, decode

STEPS = ("load", "claim", "prepare", "post", "check", "grant", "done")
"""Where a process can be made to halt: right before it loads a peer, sends a claim, makes a handle, posts, looks at
a posted transfer, sends a grant, sends word that it is done."""


def pattern(size: int, seed: int) -> np.ndarray:
    """Bytes that differ at every offset and for every seed."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


class Halt:
    """Stops the owner thread right before a step, tells the parent, and waits for ``go``."""

    def __init__(self, connector: nc.Connector, say: Callable[[Any], None]) -> None:
        self._connector, self._say = connector, say
        self._go = threading.Event()
        self._step: str | None = None

    def at(self, step: str) -> None:
        agent = self._connector._pump.core.agent
        self._go.clear()
        self._step = step
        method = {"load": "load_peer", "claim": "notify", "grant": "notify", "done": "notify"}.get(step, step)
        wanted = {"claim": Kind.CLAIM, "grant": Kind.GRANT, "done": Kind.DONE}.get(step)
        original = getattr(type(agent), method)

        def wrapped(*arguments: Any) -> Any:
            if self._step == step and (wanted is None or decode(arguments[1]).kind is wanted):
                self._step = None
                self._say(("halted", step))
                self._go.wait()
            return original(agent, *arguments)

        setattr(agent, method, wrapped)

    def go(self) -> None:
        self._go.set()


class ShiftedClock:
    """Time as on another machine: the same seconds, counted from elsewhere. Stands in for the module ``time``."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def time(self) -> float:
        return time.time() + self._ahead

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


CLOCK = "TEST_CLOCK_AHEAD"
"""Environment of a ``remote``: seconds that its clocks are ahead of the others'."""


def _shift_clocks(ahead: float) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{nc.__name__}.") and getattr(module, "time", None) is time:
            module.time = ShiftedClock(ahead)  # type: ignore[attr-defined]


class Commands:
    """What the other process can be asked to do. Operations are kept under the number the test gives."""

    def __init__(self, connector: nc.Connector, pool: nc.Pool, say: Callable[[Any], None]) -> None:
        self.connector, self.pool, self._say = connector, pool, say
        self.operations: dict[int, Any] = {}
        self.slots: dict[int, list[nc.Slot]] = {}
        self.halt = Halt(connector, say)

    async def identity(self) -> str:
        return self.connector.identity

    async def expose(self, number: int, size: int, **options: Any) -> str:
        """Expose a slot filled with ``pattern(size, number)``; gives the record."""
        slot = self.pool.allocate(size)
        slot.numpy()[:] = pattern(size, number)
        operation = await self.connector.create_readable(slot.descriptor, **options)
        slot.release()
        self.operations[number] = operation
        return operation.metadata().model_dump_json()

    async def expose_again(self, number: int, first: int, count: int) -> list[str]:
        """``count`` more operations over one slot."""
        records = []
        slot = self.pool.allocate(first)
        slot.numpy()[:] = pattern(first, number)
        for index in range(count):
            operation = await self.connector.create_readable(slot.descriptor)
            self.operations[number + index] = operation
            records.append(operation.metadata().model_dump_json())
        slot.release()
        return records

    async def accept(self, number: int, sizes: list[int], **options: Any) -> str:
        """Expose zeroed slots, one for each size, to be written; gives the record."""
        slots = self.slots[number] = self._zeroed(sizes)
        operation = await self.connector.create_writable([slot.descriptor for slot in slots], **options)
        self.operations[number] = operation
        return operation.metadata().model_dump_json()

    def _zeroed(self, sizes: list[int]) -> list[nc.Slot]:
        slots = [self.pool.allocate(size) for size in sizes]
        for slot in slots:
            slot.numpy()[:] = 0
        return slots

    async def written(self, number: int, seed: int) -> bool:
        """Do the slots of ``accept`` or ``begin_read`` hold ``pattern(size, seed + index)``? Releases them."""
        slots = self.slots.pop(number)
        good = [np.array_equal(slot.numpy(), pattern(slot.size, seed + index)) for index, slot in enumerate(slots)]
        for slot in slots:
            slot.release()
        return all(good)

    async def touched(self, number: int) -> list[bool]:
        """Of each slot of ``accept`` or ``begin_read``: is there anything but the zeros it began with?"""
        return [bool(slot.numpy().any()) for slot in self.slots[number]]

    async def forget(self, number: int) -> str:
        """Let go of an operation and its slots once nothing can touch them; gives how it ended."""
        operation = self.operations.pop(number)
        await operation.wait_for_release()
        for slot in self.slots.pop(number, []):
            slot.release()
        return operation.status.name

    async def expose_on(self, number: int, device: str, sizes: list[int]) -> str:
        """As ``expose``, of torch tensors on a device; buffer ``i`` holds ``pattern(size, number + i)``."""
        import torch

        tensors = [torch.from_numpy(pattern(size, number + i)).to(device) for i, size in enumerate(sizes)]
        _synchronize(device)
        operation = await self.connector.create_readable([nc.Descriptor(tensor) for tensor in tensors], lease=60.0)
        self.operations[number] = operation
        return operation.metadata().model_dump_json()

    async def accept_on(self, number: int, device: str, sizes: list[int]) -> str:
        import torch

        self.tensors = [torch.zeros(size, dtype=torch.uint8, device=device) for size in sizes]
        _synchronize(device)
        operation = await self.connector.create_writable([nc.Descriptor(tensor) for tensor in self.tensors], lease=60.0)
        self.operations[number] = operation
        return operation.metadata().model_dump_json()

    async def written_on(self, seed: int) -> bool:
        return all(np.array_equal(t.cpu().numpy(), pattern(len(t), seed + i)) for i, t in enumerate(self.tensors))

    async def begin_read(self, number: int, record: str, seed: int, **options: Any) -> None:
        size = sum(item.size for item in nc.parse_record(record).descriptors)
        (slot,) = self._zeroed([size])
        try:
            operation = await self.connector.begin_read(nc.parse_record(record), slot.descriptor, **options)
        except nc.TransferError:
            slot.release()
            raise
        self.operations[number], self.slots[number] = operation, [slot]

    async def read(self, number: int, record: str, seed: int, **options: Any) -> bool:
        await self.begin_read(number, record, seed, **options)
        (slot,) = self.slots.pop(number)
        try:
            await self.operations[number].wait_for_completion()
            return bool(np.array_equal(slot.numpy(), pattern(slot.size, seed)))
        finally:
            slot.release()

    async def begin_write(self, number: int, record: str, seed: int, **options: Any) -> None:
        sizes = [item.size for item in nc.parse_record(record).descriptors]
        slots = [self.pool.allocate(size) for size in sizes]
        for index, slot in enumerate(slots):
            slot.numpy()[:] = pattern(slot.size, seed + index)
        try:
            operation = await self.connector.begin_write(
                [slot.descriptor for slot in slots], nc.parse_record(record), **options
            )
        finally:
            for slot in slots:
                slot.release()
        self.operations[number] = operation

    async def post(self, number: int, indices: list[int]) -> None:
        self.operations[number].post(indices)

    async def wait(self, number: int) -> str:
        operation = self.operations[number]
        await operation.wait_for_completion()
        return operation.status.name

    async def wait_released(self, number: int) -> None:
        await self.operations[number].wait_for_release()

    async def status(self, number: int) -> str:
        return self.operations[number].status.name

    async def statuses(self) -> dict[int, str]:
        """Of every operation that is not forgotten."""
        return {number: operation.status.name for number, operation in self.operations.items()}

    async def errors(self) -> dict[int, str]:
        """Of every operation that is not forgotten."""
        return {number: repr(operation.error) for number, operation in self.operations.items()}

    async def settle(self) -> None:
        """What was asked of the owner thread so far has been done."""
        await self.connector.start()

    async def cancel(self, number: int) -> None:
        self.operations[number].cancel()

    async def renew(self, number: int, seconds: float) -> None:
        self.operations[number].renew(seconds)

    async def counters(self) -> dict[str, Any]:
        counters = self.connector.counters()
        names = ["leases", "quarantined", "in_flight", "handles", "registrations", "peers", "pool_used_bytes"]
        names += ["pool_bytes", "peer_loads_total", "ignored_notifications_total", "refused_total", "exposures_total"]
        return {name: getattr(counters, name) for name in names}

    async def halt_before(self, step: str) -> None:
        self.halt.at(step)

    async def go(self) -> None:
        self.halt.go()

    async def close(self) -> None:
        await self.connector.close()

    async def reopen(self) -> str:
        """A successor of the closed connector, in the same process and under the same name; gives its identity."""
        self.connector = nc.Connector(self.connector.name)
        self.pool = await self.connector.create_pool(self.pool.size)
        self.halt = Halt(self.connector, self._say)
        return self.connector.identity


def _synchronize(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def _serve(pipe: Connection, name: str, pool_bytes: int, environment: dict[str, str], device: str | None) -> None:
    os.environ.update(environment)
    if CLOCK in environment:
        _shift_clocks(float(environment[CLOCK]))
    lock = threading.Lock()

    def say(what: Any) -> None:
        with lock:
            pipe.send(what)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        connector = nc.Connector(name, device=device)
        commands = Commands(connector, await connector.create_pool(pool_bytes), say)
        try:
            say(("ready", None))
            tasks = set()

            async def answer(number: int, command: str, arguments: dict[str, Any]) -> None:
                try:
                    result = await getattr(commands, command)(**arguments)
                except nc.TransferError as error:
                    say(("error", number, error.code, str(error)))
                else:
                    say(("result", number, result))

            while (request := await loop.run_in_executor(None, _receive, pipe)) is not None:
                task = loop.create_task(answer(*request))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            await commands.close()

    asyncio.run(run())


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


ERRORS = {
    kind.code: kind for kind in vars(nc).values() if isinstance(kind, type) and issubclass(kind, nc.TransferError)
}


class Remote:
    """The other process, as the test sees it."""

    def __init__(self, name: str, pool_bytes: int, environment: dict[str, str], device: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, pool_bytes, environment, device), daemon=True
        )
        self._process.start()
        theirs.close()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.halted: asyncio.Future[str] = self._loop.create_future()
        self._gone_on = False
        threading.Thread(target=self._listen, daemon=True).start()

    async def ready(self) -> Remote:
        async with asyncio.timeout(30):
            await self._ready
        return self

    def _listen(self) -> None:
        while (answer := _receive(self._pipe)) is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._arrived, answer)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        if not self._ready.done():
            self._ready.set_exception(RuntimeError("the other process ended before it was ready"))

    def _arrived(self, answer: Any) -> None:
        kind, *rest = answer
        if kind == "ready":
            self._ready.set_result(None)
        elif kind == "halted":
            self.halted.set_result(rest[0])
        elif not self._answers[rest[0]].done():
            if kind == "result":
                self._answers[rest[0]].set_result(rest[1])
            else:
                self._answers[rest[0]].set_exception(ERRORS[rest[1]](rest[2]))

    def begin(self, command: str, **arguments: Any) -> asyncio.Future[Any]:
        """Ask, and wait for the answer later."""
        self._count += 1
        future = self._answers[self._count] = self._loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pipe.send((self._count, command, arguments))
        return future

    async def ask(self, command: str, **arguments: Any) -> Any:
        self._gone_on = self._gone_on or command == "go"
        async with asyncio.timeout(30):
            return await self.begin(command, **arguments)

    async def halt_before(self, step: str) -> None:
        self.halted, self._gone_on = self._loop.create_future(), False
        await self.ask("halt_before", step=step)

    async def until_halted(self) -> None:
        done, _ = await asyncio.wait([self.halted], timeout=30)
        assert done, f"it did not halt: {await self.ask('statuses')}, {await self.ask('errors')}"

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)
        # A process is not stopped when the call returns, only when the kernel says so.
        while number == signal.SIGSTOP and self._state() != "T":
            time.sleep(0.001)

    def _state(self) -> str:
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    async def stop(self) -> None:
        """End it in order if it can, by force if not."""
        if self.halted.done() and not self._gone_on:
            self._process.kill()  # it will never come back from there
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self.signal(signal.SIGCONT)
                self._pipe.send(None)
            await asyncio.to_thread(self._process.join, 15)
            self._process.kill()
        self._process.join()


@contextlib.asynccontextmanager
async def remote(
    name: str = "remote", pool: int = 32 << 20, env: dict[str, str] | None = None, device: str | None = None
) -> AsyncIterator[Remote]:
    other = Remote(name, pool, env or {}, device)
    try:
        yield await other.ready()
    finally:
        await other.stop()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for the thing itself. Fails when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.005)


def at_rest(counters: nc.Counters) -> bool:
    return not (counters.leases or counters.quarantined or counters.in_flight or counters.handles)
