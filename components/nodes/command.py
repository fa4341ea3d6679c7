"""``triptych nodes``."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from rich.console import Console

from components import aio, background
from components.cli.role import FAILED
from components.config import load
from components.nodes.cluster import Cluster, reason
from components.nodes.gate import GateError
from components.nodes.layout import read, split
from components.nodes.remote import NodeError


def run(config: Path | None, sets: list[str], nodes_file: Path, *, check: bool, lanes: bool) -> int:
    """Start, serve until a signal, drain; the exit status. Raises ``ConfigError``.

    check  only look whether every node is fit
    lanes  measure transfers on every node first
    """
    nodes = read(nodes_file)
    shares = split(config, sets, nodes)
    whole = load(config, sets)
    log_file = Path(".triptych") / "nodes" / f"{whole.frontend.port}.log"
    return asyncio.run(_run(Cluster(whole, shares, nodes, log_file, Console()), check, lanes, Console()))


async def _run(cluster: Cluster, check: bool, lanes: bool, console: Console) -> int:
    first, second, failed = asyncio.Event(), asyncio.Event(), False
    loop = asyncio.get_running_loop()

    def stop() -> None:
        (second if first.is_set() else first).set()

    def fail(reason: str) -> None:
        nonlocal failed
        failed = True
        console.print(f"{reason}: the nodes are stopped", style="red", markup=False)
        loop.call_soon_threadsafe(first.set)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    with background.ends_process(fail):
        status = await _serve(cluster, check, lanes, console, first, second)
    return FAILED if failed else status


async def _serve(
    cluster: Cluster, check: bool, lanes: bool, console: Console, first: asyncio.Event, second: asyncio.Event
) -> int:
    """Until ``first``, which drains; ``second`` cuts that short."""
    status = 1
    try:
        await aio.unless(first, _begin(cluster, check, lanes))
        if check and not first.is_set():
            return 0
        if not first.is_set():
            lost = await aio.unless(first, cluster.lost())
            if lost is None:
                status = 0
            else:
                console.print(f"{lost}: its agent ended; the rest is stopped", style="red")
            await aio.unless(second, cluster.drain())
    except (NodeError, GateError) as error:
        console.print(str(error), style="red", markup=False)
    except BaseExceptionGroup as group:
        console.print(str(reason(group)), style="red", markup=False)
    finally:
        await cluster.close()
        console.print("nothing runs any more", style="dim")
    return status


async def _begin(cluster: Cluster, check: bool, lanes: bool) -> None:
    await cluster.connect()
    await cluster.check(lanes=lanes)
    if not check:
        await cluster.start()
