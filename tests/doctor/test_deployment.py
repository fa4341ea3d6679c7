"""A topology of stand-ins on real servers: all there, one missing, one dead and listed, one of another release."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from components.config import Topology
from components.discovery import Registry
from components.doctor.deployment import check_deployment
from components.doctor.examine import examine_deployment
from components.doctor.finding import Level
from components.protocol import ROLES, VERSION, Instance, Role
from components.runtime import Panel
from components.runtime.servers import EtcdServer, NatsServer, free_port
from tests.model import MODEL
from tests.servers import ROOT, process


@pytest.fixture
def topology(request: pytest.FixtureRequest, shared_nats: NatsServer, shared_etcd: EtcdServer) -> Topology:
    return Topology.model_validate(
        {
            "namespace": request.node.name.replace("_", "-"),
            "nats": {"servers": (shared_nats.url,)},
            "etcd": {"endpoints": (shared_etcd.endpoint,)},
        }
    )


@pytest_asyncio.fixture
async def running(topology: Topology) -> AsyncIterator[AsyncExitStack]:
    """One of each role."""
    async with AsyncExitStack() as stack:
        for role in ROLES:
            await serve(stack, topology, role)
        yield stack


async def serve(stack: AsyncExitStack, topology: Topology, role: Role) -> None:
    panel = await stack.enter_async_context(Panel.open(role, topology))
    await panel.serve({})


async def levels(topology: Topology) -> dict[str, Level]:
    return {each.check: each.level for each in await check_deployment(topology)}


async def test_all_are_there(topology: Topology, running: AsyncExitStack) -> None:
    assert await levels(topology) == dict.fromkeys(ROLES, "ok")


async def test_a_role_that_nobody_plays(topology: Topology) -> None:
    async with AsyncExitStack() as stack:
        for role in ROLES[1:]:
            await serve(stack, topology, role)
        assert await levels(topology) == {**dict.fromkeys(ROLES, "ok"), ROLES[0]: "fail"}


async def test_fewer_than_the_topology_says(topology: Topology, running: AsyncExitStack) -> None:
    more = topology.model_copy(update={"decode": topology.decode.model_copy(update={"replicas": 2})})
    assert (await levels(more))["decode"] == "warn"


async def test_registered_and_silent_or_skipped(topology: Topology, running: AsyncExitStack) -> None:
    registry = await Registry.connect(topology.etcd.addresses, topology.namespace)
    prefix = f"triptych.{topology.namespace}.encode."
    entries: dict[str, dict[str, object]] = {
        "dead": {},
        "old": {"protocol": VERSION + 1},
        "foreign": {"subject": "triptych.elsewhere.encode.x"},
    }
    for id, changes in entries.items():
        values = {"role": "encode", "id": id, "subject": prefix + id, "host": "elsewhere", "pid": 7, **changes}
        instance = Instance(**{"model": topology.model.name, **values})  # type: ignore[arg-type]
        await registry.register("encode", id, msgspec.json.encode(instance))
    await registry.register("encode", "\x1b[2J", b"no JSON")
    found = {each.check: each for each in await check_deployment(topology)}
    await registry.close()
    assert found["encode dead"].level == "fail"
    assert "process 7" in found["encode dead"].change
    assert found["encode old"].level == "warn"
    assert f"its protocol is {VERSION + 1}" in found["encode old"].says
    assert "same release" in found["encode old"].change
    assert "its subject is 'triptych.elsewhere.encode.x'" in found["encode foreign"].says
    assert f"delete the key '/triptych/{topology.namespace}/encode/foreign'" in found["encode foreign"].change
    assert found["encode \\x1b[2J"].level == "warn"
    assert found["encode"].level == "ok"


async def test_another_model(topology: Topology, running: AsyncExitStack) -> None:
    mine = topology.model_copy(update={"model": topology.model.model_copy(update={"name": "mine"})})
    found = [each for each in await check_deployment(mine) if each.level != "ok"]
    assert [each.level for each in found] == ["warn"] * len(ROLES)
    assert "serves model 'tiny-vl': those that serve 'mine' skip it" in found[0].says


async def test_no_servers() -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    topology = Topology.model_validate({"nats": {"servers": (f"nats://{nowhere}",)}, "etcd": {"endpoints": (nowhere,)}})
    found = await examine_deployment(topology)
    assert [(each.check, each.level) for each in found] == [("nats", "fail"), ("etcd", "fail")]


async def test_servers_that_go_while_it_looks() -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    topology = Topology.model_validate({"nats": {"servers": (f"nats://{nowhere}",)}, "etcd": {"endpoints": (nowhere,)}})
    (found,) = await check_deployment(topology)
    assert (found.check, found.level) == ("roles", "fail")


async def doctor(topology: Topology, model: Path, folder: Path, *options: str) -> tuple[int, str]:
    """The command's exit status and what it printed."""
    path = folder / "topology.yaml"
    path.write_text(
        f"namespace: {topology.namespace}\nnats: {{servers: ['{topology.nats.servers[0]}']}}\n"
        f"etcd: {{endpoints: ['{topology.etcd.endpoints[0]}']}}\nmodel: {{path: {model}}}\n"
    )
    async with process("components.cli", "doctor", "--no-lanes", "-c", str(path), *options) as command:
        lines = []
        while line := await command.line(60):
            lines.append(line)
        return await command.ended(), "\n".join(lines)


async def test_the_command(topology: Topology, tmp_path: Path) -> None:
    """The exit status and the JSON agree; what is wrong is in both."""
    status, printed = await doctor(topology, ROOT / "docs", tmp_path, "--json")
    said = json.loads(printed)
    failed = {each["check"] for each in said["findings"] if each["level"] == "fail"}
    assert (status, said["fit"]) == (1, False)
    assert failed >= {"model", *ROLES}


async def test_the_command_for_people(topology: Topology, running: AsyncExitStack, tmp_path: Path) -> None:
    """All is well; then one thing is broken, and the line after it says what to change."""
    status, printed = await doctor(topology, MODEL, tmp_path)
    assert (status, "FAIL" in printed) == (0, False), printed
    assert "fit: 0 failed" in printed
    status, printed = await doctor(topology, ROOT / "docs", tmp_path)
    assert status == 1
    assert re.search(r"^model +FAIL .*\n[^→]*→ copy the folder again", printed, re.MULTILINE), printed
    assert "not fit: 1 failed" in printed
