"""``sglang.Engine`` inside a worker: on a thread and an event loop of its own, and watched."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from components.aio import to_the_end
from components.engines.base import EngineError
from components.engines.sglang.arguments import Arguments
from components.engines.sglang.scheduler import run_scheduler
from components.engines.sglang.stream import Stream

log = logging.getLogger(__name__)


class EngineHost:
    """One engine a process: its ``shutdown`` kills every child of the process, whoever started it.

    SGLang takes over the signals of the main thread, so it lives on another one. When one of its processes dies, SGLang
    sends SIGQUIT to this one: then all requests fail, and this process sends itself SIGTERM, so that the worker leaves
    discovery; ``close`` raises, so that it ends with an error and is started again.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang", daemon=True)
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
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._child_died)
        self._thread.start()
        # The launch takes half a minute; this loop goes on meanwhile.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._launch(), self._loop))
        async with self.open(probe) as stream:
            async for _ in stream.outputs():
                pass

    async def close(self) -> None:
        """Raises RuntimeError when the engine died before."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGQUIT)
        if self._dead:
            raise RuntimeError("a process of the SGLang engine died")

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
        self._dead = True
        log.critical("a process of the SGLang engine died: this worker leaves")
        for stream in self._streams:
            stream.fail(_gone())
        os.kill(os.getpid(), signal.SIGTERM)


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
