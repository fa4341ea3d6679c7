"""Three "hosts" on this machine: network namespaces on a bridge, by cables with latency that can be cut. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import ROOT

LATENCY = 0.001
"""Seconds each way: a ping takes four times that, being two cables long."""
MTU = "9000"


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout


def missing(tunnels: Path = Path("/dev/net/tun")) -> list[str]:
    """What this machine lacks for namespaces with cables, and how to get it."""
    found = []
    if os.geteuid() != 0:
        found.append("namespaces need root: sudo make test-multinode")
    if shutil.which("ip") is None:
        found.append("there is no `ip`: apt-get install iproute2 (dnf install iproute)")
    if not tunnels.exists():
        found.append(f"there is no {tunnels}: modprobe tun; in a container --device {tunnels} and --cap-add NET_ADMIN")
    return found


@dataclass(frozen=True)
class Host:
    """A namespace; ``link`` is the end of its cable on the bridge."""

    name: str
    address: str
    link: str

    def cut(self) -> None:
        run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        run("ip", "link", "set", self.link, "up")

    def pids(self) -> list[str]:
        return run("ip", "netns", "pids", self.name).split()


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """That many, each with ``eth0`` and no way to anything but the others and this machine."""
    lacks = missing()
    assert not lacks, "\n".join(lacks)
    number = os.getpid() % 10_000
    bridge, subnet = f"ttb{number}", f"10.{77 + number % 100}.{number // 100 % 200}"
    planned = [Host(f"tt{number}-{n}", f"{subnet}.{n}", f"ttv{number}{n}") for n in range(1, count + 1)]
    cables = [f"{host.link}:ttx{number}{index}" for index, host in enumerate(planned)]
    wire = subprocess.Popen(
        [sys.executable, "-m", "tests.nodes.wire", str(LATENCY), *cables], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert wire.stdout is not None
        assert wire.stdout.readline() == b"ready\n", "the cables cannot be laid: its error is above"
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "address", "add", f"{subnet}.254/24", "dev", bridge)
        run("ip", "link", "set", bridge, "mtu", MTU, "up")
        for host, cable in zip(planned, cables, strict=True):
            inside = ("ip", "-n", host.name)
            run("ip", "netns", "add", host.name)
            run("ip", "link", "set", host.link, "master", bridge, "mtu", MTU, "up")
            run("ip", "link", "set", cable.partition(":")[2], "netns", host.name, "name", "eth0")
            run(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "mtu", MTU, "up")
            run(*inside, "link", "set", "lo", "up")
        yield planned
    finally:
        for host in planned:
            subprocess.run(["ip", "netns", "delete", host.name], check=False)
        subprocess.run(["ip", "link", "delete", bridge], check=False)
        wire.kill()
        wire.wait()
