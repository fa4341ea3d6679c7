"""The life of a topology over several nodes: check, servers, roles, gate, serve, drain. No step waits by the clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from components import aio
from components.config import Topology
from components.doctor.finding import Finding
from components.doctor.report import is_fit, table
from components.nodes.gate import GateError, ask, until_ready
from components.nodes.layout import NodeList
from components.nodes.remote import NodeError, Remote
from components.protocol import Role

_WAY: tuple[Role, ...] = ("frontend", "processor", "decode", "prefill", "encode")
"""Each sends requests to the ones after it only, so nodes are drained in this order."""

_CHECK_SECONDS = 300.0
_SERVER_SECONDS = 60.0
_START_SECONDS = 600.0
"""A role may read its weights from a slow disk."""
_ASK_SECONDS = 120.0


class Cluster:
    """``whole`` is the topology of all; ``shares`` what each node runs of it."""

    def __init__(
        self, whole: Topology, shares: Mapping[str, Topology], nodes: NodeList, log_file: Path, console: Console
    ) -> None:
        self._whole = whole
        self._shares = {name: share.model_dump(mode="json") for name, share in shares.items()}
        self._nodes = nodes
        self._console = console
        self._log_file = log_file
        self._remotes: dict[str, Remote] = {}
        self._log = logging.Logger("nodes")
        host = next((share.frontend.host for share in shares.values() if share.frontend.replicas), "")
        self.url = f"http://{nodes.head.address if host == '0.0.0.0' else host}:{whole.frontend.port}"

    async def connect(self) -> None:
        """An agent on every node."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log.addHandler(logging.FileHandler(self._log_file, mode="w", encoding="utf-8"))
        for name in self._nodes.nodes:
            self._remotes[name] = await Remote.start(name, self._nodes.command(name), self._writer(name))

    def _writer(self, name: str) -> Callable[[str], None]:
        return lambda line: self._log.info("%-10s | %s", name, line)

    async def check(self, *, lanes: bool) -> None:
        """The doctor on every node: ports, NIXL, GPUs, limits, model. Raises ``NodeError`` if one is not fit."""
        answers = await self._all(
            "check",
            _CHECK_SECONDS,
            lambda name: {
                "address": self._nodes.nodes[name].address,
                "servers": self._nodes.nodes[name].servers,
                "lanes": lanes,
            },
        )
        self._judge(answers)

    async def start(self) -> None:
        """Servers first, then every role of every node at once, then the gate. Raises ``NodeError``, ``GateError``."""
        head = next(name for name, node in self._nodes.nodes.items() if node.servers)
        address = self._nodes.head.address
        await self._remotes[head].ask("servers", self._shares[head], _SERVER_SECONDS, address=address)
        self._say(f"NATS and etcd answer on {head} ({address})")
        self._judge(await self._all("reach", _SERVER_SECONDS))
        await self._all("start", _START_SECONDS)
        self._say("every role is registered")
        await until_ready(self.url, self._whole, _ASK_SECONDS)
        answer = await ask(self.url, self._whole.model.name, _ASK_SECONDS)
        self._say(f"{self.url} answers for model {self._whole.model.name}: {answer!r}", "bold green")
        self._say(f"log lines of all nodes: {self._log_file}", "dim")

    async def lost(self) -> str:
        """Returns the name of the first node whose agent ends."""
        waiting = {aio.child(remote.ended()): name for name, remote in self._remotes.items()}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return waiting[done.pop()]
        finally:
            await aio.end(*waiting)

    async def drain(self) -> None:
        """Nodes in the order of a request's way, so that what is in flight is finished by roles still there."""
        seconds = self._whole.drain_seconds + 30.0
        for name in sorted(self._remotes, key=self._place):
            try:
                await self._remotes[name].ask("drain", self._shares[name], seconds)
            except NodeError as error:
                self._say(str(error), "yellow")

    async def close(self) -> None:
        """Ends the agents, the one with the servers last; returns when nothing runs any more."""
        for name in sorted(self._remotes, key=lambda name: self._nodes.nodes[name].servers):
            await self._remotes[name].close()
        self._remotes.clear()

    def _place(self, name: str) -> int:
        node = self._nodes.nodes[name]
        return min((index for index, role in enumerate(_WAY) if getattr(node, role)), default=len(_WAY))

    async def _all(
        self, do: str, seconds: float, more: Callable[[str], dict[str, Any]] = lambda name: {}
    ) -> dict[str, dict[str, Any]]:
        """One command to every node at once; the first that fails ends it."""
        async with asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(remote.ask(do, self._shares[name], seconds, **more(name)))
                for name, remote in self._remotes.items()
            }
        return {name: task.result() for name, task in tasks.items()}

    def _judge(self, answers: Mapping[str, dict[str, Any]]) -> None:
        unfit = []
        for name, answer in answers.items():
            findings = [Finding(**each) for each in answer["findings"]]
            notable = [each for each in findings if each.level != "ok"]
            self._say(f"{name}: {len(findings)} checked, {len(notable)} to look at", "bold" if notable else "")
            if notable:
                self._console.print(table(notable))
            if not is_fit(findings):
                unfit.append(name)
        if unfit:
            raise NodeError(f"not fit: {', '.join(unfit)}")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


def reason(group: BaseExceptionGroup[BaseException]) -> NodeError | GateError:
    """The first of the errors that ended a step; raises the group if it is none of ours."""
    ours, other = group.split((NodeError, GateError))
    if ours is None or other is not None:
        raise group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, NodeError | GateError)
    return first
