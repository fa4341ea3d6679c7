"""The stacks that are measured beside each other: SGLang through our panels, its own split, and one engine for all.

Each answers ``ask``. The panels are asked as clients ask them, by HTTP; bare engines as a program asks them that has
them in hand: the prompt tokenized, the picture's embedding on the GPU, prefill and decode asked at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from benchmarks.sglang_task import Done, EngineRole, Ready, Task
from benchmarks.stack import running_stack
from components.cli.child import die_with_parent
from components.engines.base import Grid

_REQUEST_SECONDS = 100.0
_LINE_BYTES = 1 << 20
_LOG_LINES = 30


@dataclass(frozen=True)
class Question:
    """The same for every stack: ``body`` for HTTP, ``token_ids`` with one placeholder and ``grid`` for an engine."""

    body: bytes
    token_ids: list[int]
    grid: Grid


@dataclass(frozen=True)
class Timing:
    """One answer: ``sent`` and the ``times`` at which text came, in seconds of one clock; ``tokens`` in all."""

    sent: float
    times: list[float]
    prompt_tokens: int
    tokens: int
    hops: list[dict[str, Any]] = field(default_factory=list)


class Stack(Protocol):
    name: str

    async def ask(self, question: Question, tokens: int) -> Timing:
        """Raises RuntimeError when it gives no whole answer."""
        ...


class Panels:
    """HTTP as far as one streamed answer needs it: what a client library costs is not what is measured."""

    name = "panels"

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port

    async def ask(self, question: Question, tokens: int) -> Timing:
        async with asyncio.timeout(_REQUEST_SECONDS), self._connection() as (reader, writer):
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(question.body)}\r\n\r\n"
            )
            sent = time.perf_counter()
            writer.write(head.encode() + question.body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"{status!r}: {(await reader.read(4096)).decode(errors='replace')}")
            times: list[float] = []
            last: dict[str, Any] = {}
            # Other lines are headers and the lengths of chunks: no event looks like them.
            while not (line := await reader.readline()).startswith(b"data: [DONE]"):
                if line.startswith(b'data: {"error"') or not line:
                    raise RuntimeError(f"the answer broke off: {line!r}")
                if b'"content":"' in line and b'"content":""' not in line:
                    times.append(time.perf_counter())
                elif b'"usage":{' in line:
                    last = json.loads(line.removeprefix(b"data: "))
        usage = last["usage"]
        hops = last.get("triptych", {}).get("hops", [])
        return Timing(sent, times, usage["prompt_tokens"], usage["completion_tokens"], hops)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A new one for each answer, open before the clock starts: the server closes those that idle."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=_LINE_BYTES)
        try:
            yield reader, writer
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def panels(config: Path, folder: Path, within: float) -> AsyncIterator[Panels]:
    """``triptych up`` with a topology; its log is below ``folder``."""
    running = running_stack(config, cwd=folder, within=within)
    stack = await asyncio.to_thread(running.__enter__)
    try:
        yield Panels(stack.url)
    finally:
        # How it ends is not measured, and must not cost the numbers that are.
        try:
            await asyncio.to_thread(running.__exit__, None, None, None)
        except RuntimeError as error:
            print(f"panels: {str(error)[-2000:]}", flush=True)


class Engine:
    """A bare engine's process, and the connection on which it is asked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int | None) -> None:
        self.port = port
        self._writer = writer
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[Done]] = {}
        self._reading = asyncio.create_task(self._read(reader))

    async def ask(self, question: Question, tokens: int, *, room: int = 1, port: int = 1) -> Done:
        id = next(self._ids)
        done = self._asked[id] = asyncio.get_running_loop().create_future()
        task = Task(id, question.token_ids, question.grid, tokens, room, port)
        self._writer.write(msgspec.json.encode(task) + b"\n")
        async with asyncio.timeout(_REQUEST_SECONDS):
            result: Done = await done
        if result.error:
            raise RuntimeError(result.error)
        return result

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            done = msgspec.json.decode(line, type=Done)
            if not (waiting := self._asked.pop(done.id)).done():
                waiting.set_result(done)
        for waiting in self._asked.values():
            waiting.set_exception(RuntimeError("the engine's process ended"))


@contextlib.asynccontextmanager
async def engine(role: EngineRole, config: Path, device: str, log: Path, within: float) -> AsyncIterator[Engine]:
    """Started, and ended with every process of its own. Raises RuntimeError with the end of its log."""
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
        asyncio.get_running_loop().create_future()
    )

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set_result((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_LINE_BYTES)
    port = server.sockets[0].getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.sglang_engine", role, str(config), device, str(port)]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, start_new_session=True, preexec_fn=die_with_parent()
        )
    ended = asyncio.create_task(process.wait())
    try:
        either: list[asyncio.Future[Any]] = [connected, ended]
        await asyncio.wait(either, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        if not connected.done():
            raise RuntimeError(f"{role} did not start:\n{_end_of(log)}")
        reader, writer = connected.result()
        ready = msgspec.json.decode(await reader.readline(), type=Ready)
        yield Engine(reader, writer, ready.port)
    finally:
        server.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await ended


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


class BareSplit:
    """SGLang's own prefill and decode, each in its process."""

    name = "bare split"

    def __init__(self, prefill: Engine, decode: Engine) -> None:
        assert prefill.port is not None
        self._prefill, self._decode, self._port = prefill, decode, prefill.port

    async def ask(self, question: Question, tokens: int) -> Timing:
        room = 1 + secrets.randbelow(2**62)  # as our adapter makes them
        sent = time.perf_counter()
        answer, _ = await asyncio.gather(
            self._decode.ask(question, tokens, room=room, port=self._port),
            self._prefill.ask(question, tokens, room=room, port=self._port),
        )
        return Timing(sent, answer.times, answer.prompt_tokens, sum(answer.counts))


class Whole:
    """One engine that does everything, or one on each GPU in turn."""

    name = "aggregated"

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._next = itertools.cycle(engines)

    async def ask(self, question: Question, tokens: int) -> Timing:
        sent = time.perf_counter()
        answer = await next(self._next).ask(question, tokens)
        return Timing(sent, answer.times, answer.prompt_tokens, sum(answer.counts))


@contextlib.asynccontextmanager
async def engines(
    starts: Sequence[tuple[EngineRole, str]], config: Path, folder: Path, within: float
) -> AsyncIterator[list[Engine]]:
    """One for each role and device, started at the same time."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            starting = [
                group.create_task(
                    stack.enter_async_context(engine(role, config, device, folder / f"{role}-{device}.log", within))
                )
                for role, device in starts
            ]
        yield [task.result() for task in starting]
