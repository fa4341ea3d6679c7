"""``triptych doctor``."""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console

from components.config import Topology
from components.doctor.examine import examine_deployment, examine_node
from components.doctor.finding import Finding
from components.doctor.ports import check_ports
from components.doctor.report import as_json, is_fit, show


def doctor(topology: Topology, *, deployment: bool, lanes: bool, json: bool) -> int:
    """Examine, print, and return the exit status: 1 if anything failed.

    deployment  the topology should be running: ask its servers and roles. Otherwise: could it be started here?
    lanes       measure between processes, which takes seconds and some cores
    """
    findings = asyncio.run(_examine(topology, deployment, lanes))
    if json:
        sys.stdout.write(as_json(findings) + "\n")
    else:
        show(findings, Console())
    return 0 if is_fit(findings) else 1


async def _examine(topology: Topology, deployment: bool, lanes: bool) -> list[Finding]:
    findings = await examine_node(topology, lanes=lanes)
    return findings + await (examine_deployment(topology) if deployment else check_ports(topology))
