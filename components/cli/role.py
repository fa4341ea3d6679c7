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
from collections.abc import Coroutine, Sequence
from pathlib import Path

# etcd3's generated code needs it before protobuf is first imported, whoever imports that.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

from components.config import ConfigError, Topology, load
from components.protocol import Role
from components.telemetry import logs

log = logging.getLogger(__name__)

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
    """
    logs.setup(topology.log_level)
    module = importlib.import_module(MODULES[role])
    status = asyncio.run(_until_stopped(module.run(topology, instance)))
    # Else the interpreter, as it ends, looks through all that torch made: more than a second of CPU in each worker.
    gc.freeze()
    return status


async def _until_stopped(role: Coroutine[object, object, None]) -> int:
    task = asyncio.ensure_future(role)
    stopping = False

    def stop(number: signal.Signals) -> None:
        nonlocal stopping
        if stopping:
            log.warning("second %s: ending now", number.name)
            os._exit(128 + number)
        stopping = True
        log.info("%s: draining", number.name)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise
    return 0
