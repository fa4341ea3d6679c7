"""The benchmark between two machines, as two processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks.between_hosts import Wire
from components.runtime.servers import free_port
from tests.servers import ROOT


def test_messages_that_come_as_one_are_each_there() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(b'"first"\n{"bytes": "AAE="}\n"thi')
    wire = Wire(theirs)
    assert wire.poll(0) and wire.recv() == "first"
    assert wire.poll(0) and wire.recv() == b"\0\1"
    ours.sendall(b'rd"\n')
    assert wire.poll(0) and wire.recv() == "third"
    assert not wire.poll(0)


def test_it_measures(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "benchmarks.between_hosts"]
    port = str(free_port())
    with subprocess.Popen([*module, "serve", "--port", port], cwd=ROOT) as other:
        small = ("--port", port, "--sizes", "65536", "--rounds", "10", "--quick", "--extra", "--json", tmp_path / "f")
        subprocess.run([*module, "measure", "127.0.0.1", *small], cwd=ROOT, check=True, timeout=120)
    assert other.returncode == 0
    rows = json.loads((tmp_path / "f").read_text())["rows"]
    assert {row["kind"] for row in rows if row["what"] == "ours"} == {"read", "write"}
