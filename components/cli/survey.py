"""``triptych status``: who is registered, and does each of them answer?"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from components.config import Topology
from components.discovery import Registry
from components.messaging import Bus, CallError, Context
from components.protocol import VERSION, Instance, Role, Status, StatusRequest
from components.runtime.directory import directory


@dataclass(frozen=True)
class Report:
    """One instance: what it says that it holds for requests after ``milliseconds``, or what is wrong with it."""

    instance: Instance
    milliseconds: float = 0.0
    held: dict[str, int] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Survey:
    """``refused`` is why panels skip an entry that is no instance, by role and id: as a stranger wrote them."""

    reports: list[Report]
    refused: Mapping[tuple[Role, str], str]


async def ask_all(topology: Topology, roles: Sequence[Role], host: str | None, seconds: float) -> Survey:
    """Asks every registered instance of ``roles``, all at once; with ``host`` only those that run there.

    Raises ``ConnectionError`` if NATS or etcd is not there after ``seconds``.
    """
    bus = await Bus.connect(topology.nats.addresses, name="status", version=VERSION, wait=seconds)
    try:
        registry = await Registry.connect(topology.etcd.addresses, topology.namespace, wait=seconds)
        try:
            views = {role: await registry.watch(role, directory(topology.namespace, role)) for role in roles}
            instances = [each for view in views.values() for each in view.instances.values()]
            asked = (_ask(bus, each, seconds) for each in instances if host in (None, each.host))
            refused = {(role, id): why for role, view in views.items() for id, why in view.refused.items()}
            return Survey(await asyncio.gather(*asked), refused)
        finally:
            await registry.close()
    finally:
        await bus.close()


async def _ask(bus: Bus, instance: Instance, seconds: float) -> Report:
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


def table(survey: Survey) -> Table:
    """For people."""
    table = Table("role", "instance", "host", "answers in", "holds", box=None)
    for report in survey.reports:
        instance = report.instance
        if report.held is None:
            table.add_row(instance.role, instance.id, instance.host, "[red]no[/red]", report.problem)
        else:
            holds = ", ".join(f"{count} {name}" for name, count in report.held.items() if count) or "nothing"
            table.add_row(instance.role, instance.id, instance.host, f"{report.milliseconds:.0f} ms", holds)
    for (role, id), why in survey.refused.items():
        table.add_row(role, ascii(id), "", "[yellow]not asked[/yellow]", escape(f"skipped: {why}"))
    return table
