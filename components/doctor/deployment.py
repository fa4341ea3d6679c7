"""A whole running topology: each role is there and answers."""

from __future__ import annotations

import time

import msgspec

from components.config import Topology
from components.discovery import Registry
from components.doctor.finding import Finding
from components.messaging import Bus, CallError, Context
from components.protocol import ROLES, VERSION, Instance, Role, Status, StatusRequest

_WAIT = 3.0


async def check_deployment(topology: Topology) -> list[Finding]:
    """A finding for each instance that does not answer and for each role: as many as the topology says?"""
    try:
        bus = await Bus.connect(topology.nats.addresses, name="doctor", version=VERSION, wait=_WAIT)
    except ConnectionError as error:
        return [Finding("roles", "fail", str(error), "see the finding about nats")]
    try:
        try:
            registry = await Registry.connect(topology.etcd.addresses, topology.namespace, wait=_WAIT)
        except ConnectionError as error:
            return [Finding("roles", "fail", str(error), "see the finding about etcd")]
        try:
            found: list[Finding] = []
            for role in ROLES:
                found += await _check_role(topology, role, bus, registry)
            return found
        finally:
            await registry.close()
    finally:
        await bus.close()


async def _check_role(topology: Topology, role: Role, bus: Bus, registry: Registry) -> list[Finding]:
    view = await registry.watch(role, msgspec.json.Decoder(Instance).decode)
    instances = dict(view.instances)
    await view.close()
    found, answers = [], 0
    for instance in instances.values():
        problem = await _problem(instance, bus)
        if problem is None:
            answers += 1
        else:
            found.append(problem)
    wanted: int = getattr(topology, role).replicas
    numbers: dict[str, float | str] = {"registered": len(instances), "answer": answers, "wanted": wanted}
    hosts = ", ".join(sorted({each.host for each in instances.values()}))
    says = f"{answers} of {wanted} answer" + (f", on {hosts}" if hosts else "")
    if answers == 0 and wanted:
        change = f"start it: `triptych run {role} -c …`; its log says why it does not register"
        return [*found, Finding(role, "fail", f"none answers in namespace {topology.namespace}", change, numbers)]
    if answers < wanted:
        change = f"look at the log of the one that is missing, or start it: `triptych run {role} -c …`"
        return [*found, Finding(role, "warn", says, change, numbers)]
    return [*found, Finding(role, "ok", says, numbers=numbers)]


async def _problem(instance: Instance, bus: Bus) -> Finding | None:
    """None if it answers ``status``."""
    where = f"{instance.role} {instance.id}"
    if instance.protocol != VERSION:
        return Finding(
            where,
            "fail",
            f"speaks protocol {instance.protocol}, this is {VERSION}",
            f"run the same release of Triptych on {instance.host} as here",
        )
    began = time.perf_counter()
    try:
        await bus.call(instance.subject, "status", StatusRequest(), reply=Status, context=Context.new(_WAIT))
    except CallError as error:
        waited = time.perf_counter() - began
        return Finding(
            where,
            "fail",
            f"registered, and does not answer ({error.code} after {waited:.1f} s): pid {instance.pid} on "
            f"{instance.host}",
            f"on {instance.host} look whether process {instance.pid} runs and is not stopped; end it, its place is "
            "taken by a new one",
        )
    return None
