"""Which lane each pair of devices gets and what it measures, READ and WRITE apart, between two processes.

NIXL falls back from a fast lane to a slow one without a word, so the only proof is a measurement: the data plane's own
self-test makes it, in a process started for it. ``UCX_PROTO_INFO`` makes UCX say which protocol it chose.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.doctor.finding import Finding

_SECONDS = 120.0
"""Longest time for all pairs, imports included."""
_HOST_FLOOR = 0.2
"""GB/s between host processes: a core that copies reaches it even where it must share."""
_SAME_MACHINE = (
    "leave `cma` in UCX_TLS; /proc/sys/kernel/yama/ptrace_scope must be 0 or 1; containers need one PID and one IPC "
    "namespace and the capability SYS_PTRACE (docs/deploy.md, `How bytes go between containers`)"
)


async def check_lanes(gpus: int, ucx: Mapping[str, str]) -> list[Finding]:
    """Every ordered pair of the host and the GPUs. ``ucx`` holds the variables that the topology sets."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(gpus))]
    with tempfile.TemporaryDirectory(prefix="triptych-doctor-") as folder:
        # As in the connector: a variable that is set in the environment wins.
        environment = {**ucx, **os.environ, "UCX_PROTO_INFO": "y", "UCX_LOG_FILE": f"{folder}/%p"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "components.doctor.probe",
            *devices,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            async with asyncio.timeout(_SECONDS):
                output, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return [_broken(f"nothing after {_SECONDS:g} s")]
        chosen = _text(Path(folder, str(process.pid)))
    lanes = [line for line in output.splitlines() if line.startswith(b"[{")]
    if process.returncode != 0 or not lanes:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        return [_broken(last[0] if last else f"the process ended with status {process.returncode}")]
    return judge(json.loads(lanes[0]), chosen)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def judge(lanes: Sequence[Mapping[str, Any]], log: str) -> list[Finding]:
    """A finding for each measured lane; ``log`` is what UCX said of its choices."""
    found = []
    for lane in lanes:
        kind, local, remote, speed = lane["kind"], lane["local"], lane["remote"], lane["gb_per_s"]
        name = f"{kind} {local} {'←' if kind == 'read' else '→'} {remote}"
        protocol = protocol_of(log, kind, local, remote)
        numbers = {"GB_per_s": speed, "microseconds": lane["microseconds"], "lane": lane["name"], "protocol": protocol}
        says = f"{speed:.2f} GB/s, {lane['microseconds']:.0f} µs for 64 KiB, {protocol or lane['name']}"
        if local == remote == "cpu" and "tcp/" in protocol:
            # NIXL moves it all the same, several times slower and with a core at each end.
            found.append(Finding(name, "warn", f"{says}: not from process to process", _SAME_MACHINE, numbers))
        elif lane["software"]:
            found.append(Finding(name, "fail", f"{says}: a software path", "; ".join(lane["advice"]), numbers))
        elif speed < _HOST_FLOOR:
            change = "see whether the node is busy (`uptime`), and whether `cma` is left out of UCX_TLS"
            found.append(Finding(name, "warn", says, change, numbers))
        else:
            found.append(Finding(name, "ok", says, numbers=numbers))
    return found


_TITLE = {"read": "remote memory read by ucp_get", "write": "remote memory write by ucp_put"}


def protocol_of(log: str, kind: str, local: str, remote: str) -> str:
    """What UCX says it uses for large transfers of that kind with a peer, such as ``zero-copy cma/memory``.

    Its tables have a line that names the endpoint, one that says what moves, and a row for each range of sizes. Empty
    when there is none: host and device across processes, which the connector moves in two steps.
    """
    rows = [re.sub(r"^\[.*?\]\s*\[.*?\]", "", line).strip(" +|") for line in log.splitlines()]
    gpus = sum(device.startswith("cuda") for device in (local, remote))
    found = ""
    for index, title in enumerate(rows):
        if not title.startswith(_TITLE[kind]) or "cfg" not in rows[index - 1] or "self cfg" in rows[index - 1]:
            continue
        if title.count("cuda") != gpus:
            continue
        for row in rows[index + 1 : index + 16]:
            if row.startswith(("remote", "active")):
                break
            cells = [cell.strip() for cell in row.split("|")]
            if len(cells) == 3 and cells[0].endswith("inf"):
                found = f"{cells[1]} {cells[2]}"
    return found


def _broken(why: str) -> Finding:
    change = "see docs/troubleshooting.md, `NIXL moves nothing`; UCX_LOG_LEVEL=info shows what UCX tries"
    return Finding("lanes", "fail", f"no bytes move: {why}", change)
