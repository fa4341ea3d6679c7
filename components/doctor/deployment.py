"""A whole running topology: each role is there and answers."""

from __future__ import annotations

from collections.abc import Sequence

from components.cli.survey import Report, ask_all
from components.config import Topology
from components.doctor.finding import Finding
from components.protocol import ROLES, VERSION, Role

_WAIT = 3.0


async def check_deployment(topology: Topology) -> list[Finding]:
    """A finding for each instance that does not answer and for each role: as many as the topology says?"""
    try:
        reports = await ask_all(topology, ROLES, None, _WAIT)
    except ConnectionError as error:
        return [Finding("roles", "fail", str(error), "see the findings about nats and etcd")]
    silent = [_silent(report) for report in reports if report.held is None]
    by_role = [_role(topology, role, [report for report in reports if report.instance.role == role]) for role in ROLES]
    return silent + by_role


def _silent(report: Report) -> Finding:
    instance = report.instance
    change = (
        f"run the same release of Triptych on {instance.host} as here"
        if instance.protocol != VERSION
        else f"on {instance.host} look whether process {instance.pid} runs and is not stopped; end it, and a new one "
        "takes its place"
    )
    return Finding(f"{instance.role} {instance.id}", "fail", f"registered and no use: {report.problem}", change)


def _role(topology: Topology, role: Role, reports: Sequence[Report]) -> Finding:
    answers = sum(report.held is not None for report in reports)
    wanted: int = getattr(topology, role).replicas
    numbers: dict[str, float | str] = {"registered": len(reports), "answer": answers, "wanted": wanted}
    if answers == 0 and wanted:
        change = f"start it: `triptych run {role} -c …`; its log says why it does not register"
        return Finding(role, "fail", f"none answers in namespace {topology.namespace}", change, numbers)
    hosts = ", ".join(sorted({report.instance.host for report in reports}))
    says = f"{answers} of {wanted} answer" + (f", on {hosts}" if hosts else "")
    if answers < wanted:
        change = f"look at the log of the one that is missing, or start it: `triptych run {role} -c …`"
        return Finding(role, "warn", says, change, numbers)
    return Finding(role, "ok", says, numbers=numbers)
