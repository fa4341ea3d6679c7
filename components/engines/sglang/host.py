"""``sglang.Engine`` inside a worker: on a thread and an event loop of its own, and watched."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from components import background
from components.aio import child_on, to_the_end
from components.engines.base import EngineError
from components.engines.sglang.arguments import Arguments
from components.engines.sglang.scheduler import run_scheduler
from components.engines.sglang.stream import Stream


class EngineHost:
    """One engine a process: its ``shutdown`` kills every child of the process, whoever started it.

    SGLang takes over the signals of the main thread, so it lives on another one. When one of its processes dies, SGLang
    sends SIGQUIT to this one: then, as when that thread ends, all requests fail and so does this process.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._engine: Any = None
        self._streams: set[Stream] = set()
        self._dead = False

    @property
    def requests(self) -> int:
        """Those that the engine has not let go of."""
        return len(self._streams)

    async def start(self, probe: dict[str, Any]) -> None:
        """Returns when the model is loaded and has answered ``probe``. Raises RuntimeError when it cannot be loaded."""
        os.environ.update(self._arguments.environment)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, self._child_died)
        self._thread = background.thread(
            self._loop.run_forever, "SGLang's thread", failed=lambda _: loop.call_soon_threadsafe(self._fail)
        )
        try:
            # The launch takes half a minute; this loop goes on meanwhile.
            await asyncio.wrap_future(child_on(self._loop, self._launch()))
        except asyncio.CancelledError:
            # Told to stop: the launch cannot be, and Python would wait for its children before it ends.
            for process in multiprocessing.active_children():
                process.kill()
            raise
        async with self.open(probe) as stream:
            async for _ in stream.outputs():
                pass

    async def close(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGQUIT)

    @asynccontextmanager
    async def open(self, request: dict[str, Any]) -> AsyncIterator[Stream]:
        """The engine works on ``request`` for as long as the block lasts. Raises EngineError when it is dead."""
        if self._dead:
            raise _gone()
        stream = Stream(self._engine, self._loop, request)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            try:
                await to_the_end(stream.close())
            finally:
                self._streams.discard(stream)

    async def _launch(self) -> None:
        # Late: the import takes seconds, and reads the environment.
        from sglang.srt.entrypoints.engine import Engine
        from sglang.srt.managers.io_struct import GenerateReqInput
        from sglang.srt.server_args import ServerArgs

        class OurEngine(Engine):
            run_scheduler_process_func = staticmethod(run_scheduler)

            def submit(self, **request: Any) -> AsyncIterator[dict[str, Any]]:
                # ``async_generate`` does the same, and in no release takes the key that parts prefix caches.
                chunks: AsyncIterator[dict[str, Any]]
                chunks = self.tokenizer_manager.generate_request(GenerateReqInput(**request), None)
                return chunks

        with own_logging(self._arguments.engine["log_level"]):
            self._engine = OurEngine(**self._arguments.known(ServerArgs))
        spare_the_collector()

    def _child_died(self) -> None:
        if self._dead or self._engine is None:  # while it starts, the launch itself says so
            return
        background.fail("a process of the SGLang engine", ChildProcessError("SGLang sent SIGQUIT"), self._fail)

    def _fail(self, _: BaseException | None = None) -> None:
        self._dead = True
        for stream in self._streams:
            stream.fail(_gone())


@contextmanager
def own_logging(level: str) -> Iterator[None]:
    """For the time in which SGLang starts: it puts its own handlers in place of ours, and says much at ``info``."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    logging.getLogger("sglang").setLevel(level.upper())
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(before)
        logging.getLogger("sglang").setLevel(level.upper())


def spare_the_collector() -> None:
    """SGLang's import leaves 800,000 objects; looking through them stops this process, and its heartbeat, for long
    enough that on a busy machine others take it for dead."""
    gc.collect()
    gc.freeze()


def _gone() -> EngineError:
    return EngineError("unavailable", "the SGLang engine of this worker died", retryable=True)
