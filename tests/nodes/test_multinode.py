"""Three hosts: frontend, processor and servers on one, encode and prefill on another, decode on the third; E2 P2 D2.

``make test-multinode`` runs it, as root: hosts are network namespaces with latency, NIXL goes over TCP between them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx2
import pytest
import pytest_asyncio

from components.nodes.gate import picture
from tests.model import MODEL
from tests.nodes.hosts import Host, hosts
from tests.nodes.launcher import ANSWERS, Launcher, launched
from tests.servers import ROOT

pytestmark = [
    pytest.mark.skipif("TRIPTYCH_MULTINODE" not in os.environ, reason="needs root: make test-multinode"),
    pytest.mark.asyncio(loop_scope="module"),
]

_DEADLINE = 15.0
_TYPED = {"unavailable", "peer_lost", "deadline_exceeded", "transfer_failed", "overloaded"}

TOPOLOGY = """\
model: {{path: {model}, name: tiny-vl}}
transfer:
  # Namespaces of one kernel look like one machine to UCX: without this it would take shared memory, and lo for TCP.
  ucx_tls: tcp
  ucx_net_devices: eth0
frontend: {{request_timeout_seconds: {deadline}}}
encode: {{replicas: 2, threads: 1}}
prefill: {{replicas: 2, threads: 1}}
decode: {{replicas: 2, threads: 1}}
drain_seconds: 10
"""

NODES = """\
launch: ip netns exec {{node}}
nodes:
  {0.name}: {{address: {0.address}, servers: true, frontend: 1, processor: 1}}
  {1.name}: {{address: {1.address}, encode: 2, prefill: 2}}
  {2.name}: {{address: {2.address}, decode: 2}}
"""


@dataclass
class Running:
    url: str
    hosts: list[Host]
    launcher: Launcher

    async def ask(self, text: str = "What is it?", tokens: int = 16, url: str = "") -> httpx2.Response:
        content = [{"type": "image_url", "image_url": {"url": url or picture()}}, {"type": "text", "text": text}]
        body = {
            "model": "tiny-vl",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "trace": True,
        }
        async with httpx2.AsyncClient(base_url=self.url, timeout=_DEADLINE + 15, trust_env=False) as client:
            return await client.post("/v1/chat/completions", json=body)

    async def until_answers(self, seconds: float) -> float:
        """Asks until it is answered; how long that took."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while not (await self.ask()).is_success:
                pass  # a refusal takes its own time
        return time.monotonic() - began


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("nodes")
    topology = TOPOLOGY.format(model=MODEL, deadline=_DEADLINE)
    with hosts(3) as made:
        async with launched(folder, NODES.format(*made), topology, ["--no-lanes"]) as launcher:
            found = await launcher.until(ANSWERS, 400)
            yield Running(found.group(1), made, launcher)
            assert await launcher.end() == 0, launcher.text
        left = [pid for host in made for pid in host.pids()]
        assert not left, f"still running: {left}"


async def test_bytes_move_between_hosts(running: Running) -> None:
    """Every host is reached at its own address, and what moves moves by NIXL over TCP."""
    assert running.url == f"http://{running.hosts[0].address}:8000"
    # One that no encode worker knows: of others it does not read the bytes.
    response = await running.ask(url=picture((30, 30, 200)))
    assert response.is_success, response.text
    moved = {
        (hop["stage"], hop["name"]): hop["bytes"] for hop in response.json()["triptych"]["hops"] if hop.get("bytes")
    }
    assert {stage for stage, _ in moved} >= {"encode", "prefill"}, moved
    log = (running.launcher.folder / ".triptych/nodes/8000.log").read_text()
    for host in running.hosts:
        assert f"{host.name} " in log


async def test_several_at_once(running: Running) -> None:
    responses = await asyncio.gather(*(running.ask(f"Question {n}?") for n in range(8)))
    assert [response.status_code for response in responses] == [200] * 8


@pytest.mark.parametrize("which", [2, 1], ids=["decode", "encode and prefill"])
async def test_a_cut_link(running: Running, which: int) -> None:
    """What runs or comes meanwhile fails with a typed error within its deadline, and all is well after it is mended."""
    host = running.hosts[which]
    before = (await running.ask("The same?")).json()["choices"][0]["message"]["content"]
    asked = [asyncio.create_task(running.ask(f"Long {n}?", tokens=400)) for n in range(4)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=1.0)
    host.cut()
    try:
        began = time.monotonic()
        during = await running.ask()
        took = time.monotonic() - began
        responses = [*await asyncio.gather(*asked), during]
    finally:
        host.mend()
    assert not during.is_success
    for response in responses:
        assert response.is_success or response.json()["error"]["code"] in _TYPED, response.text
    assert took < _DEADLINE + 2
    recovered = await running.until_answers(60)
    response = await running.ask("The same?")
    assert response.is_success, response.text
    after = response.json()["choices"][0]["message"]["content"]
    assert after == before
    print(f"cut link of {host.name}: typed error after {took:.1f} s, answers {recovered:.1f} s after the link is back")


async def test_the_benchmark_between_two_hosts(running: Running) -> None:
    first, second = running.hosts[1:]
    launch = "ip netns exec {node} env UCX_TLS=tcp UCX_NET_DEVICES=eth0"
    limits = ["--min-read", "0.001", "--min-write", "0.001"]
    places = [f"{host.address}={host.name}" for host in (first, second)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(ROOT / "deploy" / "bench" / "bench.py"), "hosts", "--launch", launch, "--max-bytes", "1100000"),
        *(*limits, *places),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 300)
    print(output.decode())
    assert process.returncode == 0
    assert "passed" in output.decode()
