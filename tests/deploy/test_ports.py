"""What docs/ports.md says of NIXL's own ports, which manifests and firewalls rely on."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from components.config import Topology
from components.doctor.servers import listening
from components.protocol import ROLES
from tests.servers import ROOT

PROGRAM = """
import asyncio
from components.nixl_connect import Connector

async def main():
    async with Connector() as connector:
        await connector.start()
        print("started", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def listened(pid: int) -> set[int]:
    """TCP ports on which that process listens."""
    sockets = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    inodes = {match[1] for match in (re.fullmatch(r"socket:\[(\d+)\]", each) for each in sockets) if match}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in inodes}


async def test_nixl_listens_in_the_range_that_was_named() -> None:
    environment = {**os.environ, "UCX_TLS": "tcp", "UCX_TCP_PORT_RANGE": "23100-23199"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while await process.stdout.readline() != b"started\n":
                assert process.returncode is None
        ports = listened(process.pid)
    finally:
        process.kill()
        await process.wait()
    assert ports
    assert all(23100 <= port <= 23199 for port in ports), ports


def test_the_table_has_every_port() -> None:
    table = (ROOT / "docs" / "ports.md").read_text()
    for _, port, _, setting in listening(Topology(), ROLES, True, "127.0.0.1"):
        assert re.search(rf"^\| {port} .*`{setting}`", table, re.MULTILINE), (port, setting)
