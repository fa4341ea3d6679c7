"""Which lane each pair of devices gets and what it measures, READ and WRITE apart, between processes.

NIXL falls back from a fast lane to a slow one without a word, so the only proof is a measurement. ``UCX_PROTO_INFO``
makes UCX say which protocol it chose; it is read from the log of the process that moves the bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from components.doctor.finding import Finding, Level

Kind = Literal["read", "write"]
KINDS: tuple[Kind, ...] = ("read", "write")
MIB = 2**20

_ROUNDS = 5
_START_SECONDS = 120.0
_ANSWER_SECONDS = 90.0
_LINE = 2**24
_TAIL = 400

_GPU_FLOOR = 5.0
"""GB/s. Between GPUs of one node the slowest hardware lane (PCIe 3) is above it, software emulation at 0.3 to 0.9."""
_HOST_FLOOR = 0.3
"""GB/s between host processes: a core that copies reaches it even where it must share."""


class LaneError(Exception):
    """A station did not start, ended, or could not move the bytes; the message has its last words."""


@dataclass(frozen=True)
class Measured:
    """One direction of a pair: bytes counted once, median of the rounds after the first, which sets up the pair."""

    here: str
    there: str
    kind: Kind
    gigabytes_per_second: float
    first_seconds: float
    protocol: str


class Station:
    """One child process with memory on one device; see ``components.doctor.station``."""

    def __init__(self, device: str, size: int, process: asyncio.subprocess.Process, log: Path) -> None:
        self.device = device
        self.size = size
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, device: str, size: int, log: Path, ucx: Mapping[str, str]) -> Self:
        """``log`` is where UCX writes what it chose; ``ucx`` holds variables that the environment may override."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "components.doctor.station",
            device,
            str(size),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
            env={**ucx, **os.environ, "UCX_PROTO_INFO": "y", "UCX_LOG_FILE": str(log)},
        )
        return cls(device, size, process, log)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def ready(self) -> None:
        await self._answer(_START_SECONDS)

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return await self._answer(_ANSWER_SECONDS)

    async def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        try:
            async with asyncio.timeout(seconds):
                while line := await self._process.stdout.readline():
                    if line.startswith(b"{"):
                        answer: dict[str, Any] = json.loads(line)
                        if "error" in answer:
                            raise LaneError(answer["error"])
                        return answer
                last = (await self._process.stderr.read())[-_TAIL:].decode(errors="replace").strip()
        except TimeoutError:
            raise LaneError(f"the process with {self.device} is silent for {seconds:g} s") from None
        raise LaneError(f"the process with {self.device} ended: {last.splitlines()[-1] if last else 'no word'}")

    def protocol(self, kind: Kind, there: str) -> str:
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        return protocol_of(log, kind, "cuda" in (self.device[:4], there[:4]))


_TITLE = {"read": "remote memory read by ucp_get", "write": "remote memory write by ucp_put"}


def protocol_of(log: str, kind: Kind, cuda: bool) -> str:
    """What UCX says it uses for large transfers of that kind with a peer, such as ``zero-copy cma/memory``.

    Its tables have a line that names the endpoint, one that says what moves, and a row for each range of sizes.
    """
    rows = [re.sub(r"^\[.*?\]\s*\[.*?\]", "", line).strip(" +|") for line in log.splitlines()]
    # The last one counts: a pair with another path to it makes tables of its own.
    found = ""
    for index, title in enumerate(rows):
        if not title.startswith(_TITLE[kind]) or "cfg" not in rows[index - 1] or "self cfg" in rows[index - 1]:
            continue
        if ("cuda" in title) != cuda:
            continue
        for row in rows[index + 1 : index + 16]:
            if row.startswith(("remote", "active")):
                break
            cells = [cell.strip() for cell in row.split("|")]
            if len(cells) == 3 and cells[0].endswith("inf"):
                found = f"{cells[1]} {cells[2]}"
    return found


async def measure(here: Station, there: Station) -> list[Measured]:
    """READ and WRITE by ``here`` of memory of ``there``. Raises ``LaneError``."""
    records = await there.ask({"expose": None, "count": _ROUNDS})
    # There polls while it waits for the claims: over TCP a one-sided transfer needs both sides.
    seconds = await here.ask({kind: records[kind] for kind in KINDS})
    return [
        Measured(
            here.device,
            there.device,
            kind,
            round(here.size / statistics.median(seconds[kind][1:]) / 1e9, 2),
            round(seconds[kind][0], 4),
            here.protocol(kind, there.device),
        )
        for kind in KINDS
    ]


def judge(measured: Measured) -> Finding:
    """Compares with what a hardware lane gives at least."""
    gpus = measured.here.startswith("cuda") + measured.there.startswith("cuda")
    name = f"lane {measured.here} {measured.kind} {measured.there}"
    speed = measured.gigabytes_per_second
    lane = measured.protocol or "unknown protocol"
    numbers: dict[str, float | str] = {
        "GB_per_s": speed,
        "first_seconds": measured.first_seconds,
        "protocol": measured.protocol,
    }
    says = f"{speed:.2f} GB/s, {lane}"
    floor, level, change = (
        _HOST_FLOOR,
        "warn",
        "see whether the node is busy (`uptime`); keep cma: ptrace_scope is 0 or 1",
    )
    if gpus == 2:
        floor, level = _GPU_FLOOR, "fail"
        change = (
            "this is a software path: look for hidden GPUs, separate PID or IPC namespaces of containers "
            "(docs/troubleshooting.md, `slow transfers`)"
        )
    if gpus == 1:
        return Finding(name, "ok", f"{says} (between host and GPU of two processes always slow)", numbers=numbers)
    if speed < floor:
        graded: Level = "fail" if level == "fail" else "warn"
        return Finding(name, graded, says, change, numbers)
    return Finding(name, "ok", says, numbers=numbers)


def pairs(gpus: int) -> list[str]:
    """The device of each station: two on the host, one on each GPU, and two on a GPU that is alone."""
    return ["cpu", "cpu", *(f"cuda:{index}" for index in range(gpus)), *(["cuda:0"] if gpus == 1 else [])]


async def check_lanes(gpus: int, ucx: Mapping[str, str], size: int = 32 * MIB) -> list[Finding]:
    """Every pair of stations, host with the first GPU only. ``ucx`` is what the topology sets."""
    with tempfile.TemporaryDirectory(prefix="triptych-doctor-") as folder:
        async with AsyncExitStack() as stack:
            stations: list[Station] = []
            try:
                for index, device in enumerate(pairs(gpus)):
                    station = await Station.start(device, size, Path(folder, f"{index}.log"), ucx)
                    stations.append(await stack.enter_async_context(station))
                await asyncio.gather(*(station.ready() for station in stations))
            except LaneError as error:
                return [_broken("lanes", error)]
            return await _all(stations)


async def _all(stations: Sequence[Station]) -> list[Finding]:
    found: list[Finding] = []
    for first, here in enumerate(stations):
        for there in stations[first + 1 :]:
            if here.device == "cpu" and there.device not in ("cpu", "cuda:0"):
                continue
            if here is not stations[0] and here.device == "cpu":
                continue  # the second process with host memory is there for the first one only
            try:
                found += [judge(each) for each in await measure(here, there)]
            except LaneError as error:
                found.append(_broken(f"lane {here.device} {there.device}", error))
    return found


def _broken(check: str, error: LaneError) -> Finding:
    change = "see docs/troubleshooting.md, `NIXL moves nothing`; UCX_LOG_LEVEL=info shows what UCX tries"
    return Finding(check, "fail", f"no bytes move: {error}", change)
