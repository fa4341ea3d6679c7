"""Ten times the sustainable load for minutes: is anybody taken for dead who lives, and how fast is a real death seen?

    python -m benchmarks.overload                              ten minutes, 150 clients, a kill or a freeze every minute
    python -m benchmarks.overload --minutes 1 --every 20 --json out.json

Half of the questions bring a picture. Every ``--every`` seconds one worker is killed (SIGKILL) or frozen (SIGSTOP), in
turns; a frozen one is killed once it was seen, and the supervisor starts both again. What a process declares dead it
logs. A death is *false* when that process was not hurt shortly before. The exit status is 1 when one was, or when a
real one took two seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks.chat import chat_body
from benchmarks.serve import Question, questions
from benchmarks.stack import running_stack
from components.cli.up import STATE

WORKERS = ("decode", "prefill", "encode")
SEEN_SECONDS = 2.0
_AFTERMATH = 10.0
"""Seconds after an injury in which what the hurt process called or was called by may be declared dead."""

_READY = re.compile(r"(\S+)Z .* ready role=(\w+) id=(\S+) pid=(\d+)")
_DEATH = re.compile(r"(\S+)Z WARNING +components\.messaging\.links: (\S+) is dead: (.*)")
_CODE = re.compile(rb'"code": ?"(\w+)"')


@dataclass
class Injury:
    """``seen`` is the number of seconds until the first process declared it dead."""

    id: str
    signal: str
    at: float
    seen: float | None = None


@dataclass
class Death:
    who: str
    why: str
    at: float


@dataclass
class Log:
    """The stack's log, read again and again."""

    file: Path
    deaths: list[Death] = field(default_factory=list)
    _read: int = 0
    _ready: dict[str, tuple[str, int, float]] = field(default_factory=dict)

    def look(self) -> None:
        with self.file.open(errors="replace") as file:
            file.seek(self._read)
            while (line := file.readline()).endswith("\n"):
                self._read = file.tell()
                if match := _READY.search(line):
                    self._ready[match[3]] = (match[2], int(match[4]), _seconds(match[1]))
                if match := _DEATH.search(line):
                    self.deaths.append(Death(match[2], match[3], _seconds(match[1])))

    def workers(self) -> list[tuple[str, int]]:
        """Id and pid of every living worker that has been there for long enough to have work."""
        settled = time.time() - _AFTERMATH
        return [
            (id, pid)
            for id, (role, pid, since) in self._ready.items()
            if role in WORKERS and since < settled and Path(f"/proc/{pid}").exists()
        ]


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp()


@dataclass
class Answers:
    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


async def client(http: httpx2.AsyncClient, model: str, question: Question, end: float, answers: Answers) -> None:
    """Asks again as soon as it was answered; after an error a fifth of a second later."""
    for turn in itertools.count(random.randrange(2)):
        if time.time() >= end:
            return
        body = chat_body(model, question.png, question.text, 64)
        if turn % 2:
            body["messages"][0]["content"] = question.text
        began = time.time()
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                raw = await response.aread()
        except httpx2.HTTPError as error:
            answers.counts[type(error).__name__] += 1
            continue
        if match := _CODE.search(raw):
            answers.counts[f"{response.status_code} {match[1].decode()}"] += 1
            await asyncio.sleep(0.2)
        else:
            answers.counts["200"] += 1
            answers.seconds.append(time.time() - began)


async def hurt(log: Log, end: float, every: float) -> list[Injury]:
    injuries: list[Injury] = []
    numbers = itertools.cycle((signal.SIGKILL, signal.SIGSTOP))
    while time.time() + every < end:
        await asyncio.sleep(every)
        log.look()
        workers = log.workers()
        if not workers:
            continue
        id, pid = random.choice(workers)
        number = next(numbers)
        injury = Injury(id, number.name, time.time())
        injuries.append(injury)
        os.kill(pid, number)
        while injury.seen is None and time.time() < injury.at + _AFTERMATH:
            await asyncio.sleep(0.1)
            log.look()
            for death in log.deaths:
                if death.who.endswith(f".{id}") and death.at >= injury.at - 0.01:
                    injury.seen = round(death.at - injury.at, 3)
                    break
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        print(f"  {number.name} {id}: seen after {injury.seen} s", flush=True)
    return injuries


def is_true(death: Death, injuries: Sequence[Injury]) -> bool:
    """A caller is known by its inbox only: one that dies just after an injury is taken for the hurt process."""
    return any(
        0 <= death.at - injury.at + 0.01 < _AFTERMATH + 5
        and (death.who.startswith("_INBOX.") or death.who.endswith(f".{injury.id}"))
        for injury in injuries
    )


async def measure(url: str, log: Log, *, clients: int, minutes: float, every: float) -> dict[str, Any]:
    end = time.time() + minutes * 60
    answers = Answers()
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=180, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        asking = [client(http, model, question, end, answers) for question in questions(clients, int(time.time()))]
        injuries, _ = await asyncio.gather(hurt(log, end, every), asyncio.gather(*asking))
    log.look()
    return {
        "answers": dict(answers.counts),
        "seconds, median": round(statistics.median(answers.seconds), 2) if answers.seconds else None,
        "injuries": [asdict(injury) for injury in injuries],
        "deaths declared": len(log.deaths),
        "false deaths": [asdict(death) for death in log.deaths if not is_true(death, injuries)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", type=Path, default=Path("configs/local-e2p2d2.yaml"))
    parser.add_argument("--clients", type=int, default=150)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=60.0, metavar="SECONDS", help="between one injury and the next")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    before = os.getloadavg()
    with running_stack(options.config) as stack:
        log = Log(STATE / "logs" / f"{urlsplit(stack.url).port}.log")
        result = asyncio.run(
            measure(stack.url, log, clients=options.clients, minutes=options.minutes, every=options.every)
        )
    result["settings"] = {
        "clients": options.clients,
        "minutes": options.minutes,
        "cpus": os.cpu_count(),
        "load before": before,
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    late = [injury for injury in result["injuries"] if injury["seen"] is None or injury["seen"] >= SEEN_SECONDS]
    return 1 if late or result["false deaths"] else 0


if __name__ == "__main__":
    sys.exit(main())
