"""The node list, and agents on this machine: what is refused before a start, and that nothing outlives a launcher."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from components.config import ConfigError
from components.nodes.layout import NodeList, read, split
from components.runtime.servers import free_port
from tests.model import MODEL
from tests.nodes.hosts import missing
from tests.nodes.launcher import ANSWERS, launched
from tests.servers import ROOT
from tests.waiting import until

LOCAL = """\
launch: env NODE={node}
nodes:
  alpha: {address: 127.0.0.1, servers: true, frontend: 1, processor: 1}
  beta: {address: 127.0.0.2, encode: 1, prefill: 1, decode: 1}
"""
NOT_FIT = re.compile("not fit: (.*)")


def topology(**ports: int) -> str:
    values = {name: ports.get(name) or free_port() for name in ("http", "nats", "etcd", "peer")}
    return (
        f"model: {{path: {MODEL}, name: tiny-vl}}\nfrontend: {{port: {values['http']}}}\n"
        f"nats: {{port: {values['nats']}}}\netcd: {{port: {values['etcd']}, peer_port: {values['peer']}}}\n"
    )


def test_each_node_gets_its_share(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(LOCAL.replace("decode: 1}", "decode: 1, set: [encode.max_batch_images=3]}"))
    nodes = read(path)
    shares = split(None, ["nats.port=5000"], nodes)
    assert nodes.command("beta")[:2] == ["env", "NODE=beta"]
    assert nodes.command("beta")[-1] == "beta"
    assert (shares["alpha"].frontend.replicas, shares["alpha"].encode.replicas) == (1, 0)
    assert (shares["beta"].frontend.replicas, shares["beta"].decode.replicas) == (0, 1)
    assert (shares["alpha"].encode.max_batch_images, shares["beta"].encode.max_batch_images) == (8, 3)
    for share in shares.values():
        assert share.nats.servers == ("nats://127.0.0.1:5000",)
        assert share.etcd.endpoints == ("127.0.0.1:2379",)
    assert shares["alpha"].frontend.host == "127.0.0.1"


def test_the_example() -> None:
    nodes = read(ROOT / "deploy" / "multinode" / "nodes.yaml")
    shares = split(ROOT / "configs" / "local-e2p2d2.yaml", [], nodes)
    assert {name: share.transfer.ucx_net_devices for name, share in shares.items()}["beta"] == "mlx5_0:1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LOCAL.replace("servers: true, ", ""), "exactly one node"),
        (LOCAL.replace("{node}", "node"), "no {node}"),
        (LOCAL.replace("encode: 1", "encodes: 1"), "nodes.beta.encodes"),
        ("nodes: [", "nodes.yaml"),
    ],
)
def test_a_node_list_that_makes_no_sense(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        read(path)


def test_more_or_fewer_than_the_topology_has() -> None:
    nodes = NodeList.model_validate({"nodes": {"a": {"address": "h", "servers": True, "frontend": 1, "processor": 1}}})
    with pytest.raises(ConfigError, match="encode: the topology has 1, the node list places 0"):
        split(None, [], nodes)


async def test_a_launcher_that_is_not_there(tmp_path: Path) -> None:
    async with launched(tmp_path, LOCAL.replace("env ", "no-such-launcher "), topology()) as launcher:
        assert await launcher.ended() == 1
        assert "no-such-launcher: No such file" in launcher.text


async def test_a_node_that_is_not_reached(tmp_path: Path) -> None:
    async with launched(tmp_path, LOCAL.replace("env NODE={node}", "false {node}"), topology()) as launcher:
        assert await launcher.ended() == 1
        assert "the agent ended" in launcher.text


async def test_a_port_that_is_taken_is_found_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        async with launched(
            tmp_path, LOCAL, topology(nats=other.getsockname()[1]), ["--no-lanes", "--check"]
        ) as launcher:
            found = await launcher.until(NOT_FIT, 90)
            assert found.group(1) == "alpha"
            assert "NATS cannot listen" in launcher.text
            assert await launcher.ended() == 1


async def test_up_and_a_killed_launcher(tmp_path: Path) -> None:
    """Both nodes answer as one; when the launcher is killed, the agents and all that they started end by themselves."""
    async with launched(tmp_path, LOCAL, topology(), ["--no-lanes"]) as launcher:
        await launcher.until(ANSWERS, 180)
        assert len(_below(tmp_path)) >= 9  # two agents, two servers, five roles
        await launcher.end(signal.SIGKILL)
        await until(lambda: not _below(tmp_path), lambda: _below(tmp_path), within=60)


def _below(folder: Path) -> dict[int, str]:
    """Processes that work in ``folder``, or keep their files there: what a launcher started there leads to."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (entry / "cwd").resolve() == folder or str(folder) in command:
                found[int(entry.name)] = command
        except OSError:  # it has just ended
            continue
    return found


def test_what_namespaces_lack_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine without root, iproute2 and /dev/net/tun, all three at once."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    root, program, tunnel = missing(tmp_path / "tun")
    assert "sudo" in root and "apt-get install iproute2" in program and "modprobe tun" in tunnel
