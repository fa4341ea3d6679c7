"""A whole running topology: each role is there and answers."""

from __future__ import annotations

from collections.abc import Sequence

from components.cli.survey import Report, ask_all
from components.config import Topology
from components.doctor.finding import Finding
from components.protocol import ROLES, Role

_WAIT = 3.0


async def check_deployment(topology: Topology) -> list[Finding]:
    """A finding for each entry that is skipped, each instance that does not answer, and each role: as many as the
    topology says?"""
    try:
        survey = await ask_all(topology, ROLES, None, _WAIT)
    except ConnectionError as error:
        return [Finding("roles", "fail", str(error), "see the findings about nats and etcd")]
    reports = survey.reports
    skipped = [_skipped(topology, role, id, why) for (role, id), why in survey.refused.items()]
    silent = [_silent(report) for report in reports if report.held is None]
    by_role = [_role(topology, role, [report for report in reports if report.instance.role == role]) for role in ROLES]
    others = [_another_model(topology, report) for report in reports if report.instance.model != topology.model.name]
    return skipped + others + silent + by_role


def _skipped(topology: Topology, role: Role, id: str, why: str) -> Finding:
    key = ascii(f"/triptych/{topology.namespace}/{role}/{id}")
    return Finding(
        f"{role} {ascii(id)[1:-1]}",
        "warn",
        f"registered in etcd and skipped by all: {ascii(why)[1:-1]}",
        "if it is one of this deployment, run the same release and the same topology there as here; if not, find who "
        f"writes to this etcd, and delete the key {key}",
    )


def _another_model(topology: Topology, report: Report) -> Finding:
    instance = report.instance
    return Finding(
        f"{instance.role} {instance.id}",
        "warn",
        f"serves model {instance.model!r}: those that serve {topology.model.name!r} skip it",
        f"name the same model.name in the topology on {instance.host} as here, or give the two deployments namespaces "
        "of their own",
    )


def _silent(report: Report) -> Finding:
    instance = report.instance
    change = (
        f"on {instance.host} look whether process {instance.pid} runs and is not stopped; end it, and a new one takes "
        "its place"
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
