"""``triptych status``: who is registered, and does each of them answer?"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from rich.table import Table

from components.config import Topology
from components.discovery import Registry
from components.messaging import Bus, CallError, Context
from components.protocol import VERSION, Instance, Role, Status, StatusRequest


@dataclass(frozen=True)
class Report:
    """One instance: what it says that it holds for requests after ``milliseconds``, or what is wrong with it."""

    instance: Instance
    milliseconds: float = 0.0
    held: dict[str, int] | None = None
    problem: str = ""


async def ask_all(topology: Topology, roles: Sequence[Role], host: str | None, seconds: float) -> list[Report]:
    """Asks every registered instance of ``roles``, all at once; with ``host`` only those that run there.

    Raises ``ConnectionError`` if NATS or etcd is not there after ``seconds``.
    """
    bus = await Bus.connect(topology.nats.addresses, name="status", version=VERSION, wait=seconds)
    try:
        registry = await Registry.connect(topology.etcd.addresses, topology.namespace, wait=seconds)
        try:
            decode = msgspec.json.Decoder(Instance).decode
            views = await asyncio.gather(*(registry.watch(role, decode) for role in roles))
            instances = [each for view in views for each in view.instances.values() if host in (None, each.host)]
            return await asyncio.gather(*(_ask(bus, each, seconds) for each in instances))
        finally:
            await registry.close()
    finally:
        await bus.close()


async def _ask(bus: Bus, instance: Instance, seconds: float) -> Report:
    if instance.protocol != VERSION:
        return Report(instance, problem=f"speaks protocol {instance.protocol}, not {VERSION}")
    began = time.monotonic()
    held: dict[str, int] | None = None
    context = Context.new(seconds)
    try:
        # To its end, not only to its one item: the instance would log a caller that left early.
        async with bus.stream(
            instance.subject, "status", StatusRequest(), reply=Status, context=context, stage=instance.role
        ) as answers:
            async for answer in answers:
                held = answer.held
    except CallError as error:
        return Report(instance, problem=str(error))
    return Report(instance, (time.monotonic() - began) * 1e3, held)


def this_host() -> str:
    """What instances that run here call their host; in a container its own name."""
    return socket.gethostname()


def table(reports: Sequence[Report]) -> Table:
    """For people."""
    table = Table("role", "instance", "host", "answers in", "holds", box=None)
    for report in reports:
        instance = report.instance
        if report.held is None:
            table.add_row(instance.role, instance.id, instance.host, "[red]no[/red]", report.problem)
        else:
            holds = ", ".join(f"{count} {name}" for name, count in report.held.items() if count) or "nothing"
            table.add_row(instance.role, instance.id, instance.host, f"{report.milliseconds:.0f} ms", holds)
    return table
