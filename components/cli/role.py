"""Starts one role in this process: behind ``triptych run ROLE``, ``python -m workers.encode`` and ``triptych up``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path

# etcd3's generated code needs it before protobuf is first imported, whoever imports that.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

from components import aio, background
from components.config import ConfigError, Topology, load
from components.protocol import Role
from components.telemetry import logs

log = logging.getLogger(__name__)

FAILED = 70
"""Exit status of a process whose background work has failed (``EX_SOFTWARE`` of sysexits.h)."""

_LAST_SECONDS = 5.0
"""How long a process that has failed may take to leave discovery and tell its callers."""

_LAST_THREADS_SECONDS = 1.0
"""How long a role that has ended waits for its threads: one that loads weights for it loads them for nobody."""

MODULES: dict[Role, str] = {
    "frontend": "frontend.service",
    "processor": "processor.service",
    "encode": "workers.encode.service",
    "prefill": "workers.prefill.service",
    "decode": "workers.decode.service",
}
"""Each has ``async def run(topology: Topology, instance: str | None) -> None``."""


def main(role: Role, arguments: Sequence[str] | None = None) -> None:
    """The command line of one role; ends the process with its exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULES[role].rpartition('.')[0]}")
    parser.add_argument("-c", "--config", type=Path, help="topology file (default: one of each role on this machine)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="sets", help="override a setting")
    parser.add_argument("--id", dest="instance", help="name of this instance (default: a fresh one)")
    options = parser.parse_args(arguments)
    try:
        topology = load(options.config, options.sets)
    except ConfigError as error:
        sys.exit(str(error))
    sys.exit(start(role, topology, options.instance))


def start(role: Role, topology: Topology, instance: str | None) -> int:
    """Runs the role until it ends or is told to; returns the exit status.

    The first SIGTERM or SIGINT cancels ``run``, which drains in its ``finally`` blocks; the second ends the process.
    Background work that fails cancels it too, and ends the process ``_LAST_SECONDS`` later at the latest.
    """
    logs.setup(topology.log_level)
    module = importlib.import_module(MODULES[role])
    with asyncio.Runner() as runner:
        status = runner.run(_until_stopped(module.run(topology, instance)))
        # The runner's end, and the interpreter's, wait for whatever runs in threads.
        _end_after(_LAST_THREADS_SECONDS, status)
    # Else the interpreter, as it ends, looks through all that torch made: more than a second of CPU in each worker.
    gc.freeze()
    return status


def _end_after(seconds: float, status: int) -> None:
    """This process ends then at the latest, whatever its threads do."""
    last = threading.Timer(seconds, os._exit, [status])
    last.daemon = True
    last.start()


async def _until_stopped(role: Coroutine[object, object, None]) -> int:
    task = aio.child(role)
    stopping = failed = False

    def stop(number: signal.Signals) -> None:
        nonlocal stopping
        if stopping:
            log.warning("second %s: ending now", number.name)
            os._exit(128 + number)
        stopping = True
        log.info("%s: draining", number.name)
        task.cancel()

    def fail(reason: str) -> None:
        """On any thread; this one may never run again."""
        nonlocal failed
        if failed:
            return
        failed = True
        log.critical("%s: this process ends", reason)
        _end_after(_LAST_SECONDS, FAILED)
        with suppress(RuntimeError):  # The loop has ended, and with it the role.
            loop.call_soon_threadsafe(task.cancel)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    with background.ends_process(fail):
        try:
            await task
        except asyncio.CancelledError:
            if not stopping and not failed:
                raise
    return FAILED if failed else 0
