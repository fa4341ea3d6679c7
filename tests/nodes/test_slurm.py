"""The job script, with stand-ins for Slurm's commands: the node list that it writes, and that it passes the end on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import yaml

from components.nodes.layout import NodeList
from tests.servers import ROOT
from tests.waiting import until

SCRIPT = ROOT / "deploy" / "multinode" / "slurm.sh"

STAND_INS = {
    "scontrol": 'printf "one\\ntwo\\nthree\\n"',
    "getent": 'echo "10.1.2.${#2} STREAM $2"',
    "triptych": 'cp "$3" "$SEEN"; trap "exit 7" TERM; while :; do sleep 0.05; done',
}


async def test_the_node_list_and_the_end(tmp_path: Path) -> None:
    for name, text in STAND_INS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    seen = tmp_path / "nodes.yaml"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SEEN": str(seen),
        "SLURM_JOB_NODELIST": "x",
    }
    job = await asyncio.create_subprocess_exec("bash", SCRIPT, "t.yaml", env=environment)
    try:
        await until(lambda: seen.exists() and bool(seen.read_text()), lambda: "no node list")
        job.terminate()
        assert await asyncio.wait_for(job.wait(), 10) == 7
    finally:
        if job.returncode is None:
            job.kill()
    nodes = NodeList.model_validate(yaml.safe_load(seen.read_text()))
    assert list(nodes.nodes) == ["one", "two", "three"]
    assert nodes.head.address == "10.1.2.3"
    assert (nodes.nodes["two"].encode, nodes.nodes["two"].prefill, nodes.nodes["three"].decode) == (2, 2, 2)
    assert nodes.command("two")[:5] == ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=two"]
