"""``make test-install``: every command once, in an environment that ``make install`` made and nobody else.

    .venv-install/bin/python -m tests.install.run

Run by the Python of that environment; needs nothing that it lacks.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.config.topology import REPOSITORY
from components.runtime.servers import free_port
from tests.install.commands import paths

TRIPTYCH = Path(sys.executable).parent / "triptych"
PICTURE = REPOSITORY / "examples" / "pictures" / "shapes.png"
ONLY_FOR_TESTS = ("httpx", "openai", "pytest", "mypy", "hypothesis")
NODES = """
launch: env NODE={node}
nodes:
  here: {address: 127.0.0.1, servers: true, frontend: 1, processor: 1, encode: 1, prefill: 1, decode: 1}
"""


class Commands:
    """Those that were run; each may print what it likes, but no traceback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[tuple[str, ...]] = set()
        path = f"{TRIPTYCH.parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def run(self, command: str, *options: object, status: int = 0, says: str = "") -> None:
        """``command`` is its name alone; ends the program unless it ends with ``status`` and prints ``says``."""
        began = time.monotonic()
        done = subprocess.run(
            self._line(command, options),
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        line = shlex.join(["triptych", *command.split(), *map(str, options)])
        if done.returncode != status or "Traceback" in done.stdout or says not in done.stdout:
            wanted = f"status {status}, no traceback, and {says!r} among it"
            sys.exit(f"{line}\nended with status {done.returncode}; wanted: {wanted}\n{done.stdout}")
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    @contextmanager
    def running(self, command: str, *options: object, ready: str) -> Iterator[None]:
        """While it runs, from when it prints ``ready``; a SIGTERM must end it well."""
        process = subprocess.Popen(
            self._line(command, options),
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        printed: list[str] = []
        try:
            for line in process.stdout:
                printed.append(line)
                if ready in line:
                    break
            else:
                sys.exit(f"triptych {command} did not start:\n{''.join(printed)}")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            printed.append(process.communicate(timeout=60)[0])
        if process.returncode != 0:
            sys.exit(f"triptych {command} ended with status {process.returncode}:\n{''.join(printed)}")
        print(f"          triptych {command}: ran, and ended with status 0", flush=True)

    def _line(self, command: str, options: tuple[object, ...]) -> list[str]:
        path = tuple(command.split())
        self.seen.add(path)
        return [str(TRIPTYCH), *path, *map(str, options)]


def exercise(commands: Commands) -> None:
    """Every command, most of them against a stack of the bundled model."""
    http, nats, etcd, peer = (free_port() for _ in range(4))
    url, servers = f"http://127.0.0.1:{http}", f"nats://127.0.0.1:{nats}"
    ports = ["--port", http]
    for setting in (f"nats.port={nats}", f"etcd.port={etcd}", f"etcd.peer_port={peer}"):
        ports += ["--set", setting]
    topology = commands.folder / "topology.yaml"
    topology.write_text(f"nats: {{servers: ['{servers}']}}\netcd: {{endpoints: ['127.0.0.1:{etcd}']}}\n")
    with commands.running("up", *ports, ready="answers for model"):
        commands.run("chat", "What is in this picture?", "--image", PICTURE, "--url", url, "--trace", says="encode")
        commands.run("status", "-c", topology, says="prefill")
        commands.run("doctor", "-c", topology, says="fit: 0 failed")
        with commands.running("run", "encode", "-c", topology, ready="ready role=encode"):
            commands.run("status", "encode", "-c", topology)
        small = ("--rounds", 1, "--tokens", 4, "--at-once", 2)
        commands.run("bench serve", "--url", url, *small, "--json", "serve.json")
    commands.run("demo", *ports, "--once", says="The way it took")
    commands.run("bench transfer", "--quick", "--sizes", 65536, "--rounds", 20, "--idle-seconds", 0.1, says="cpu<->cpu")
    commands.run("bench sglang", status=1, says="SGLang is not installed here")
    commands.run("plan", "--rate", 2, "--gpus", 8)
    nodes = commands.folder / "nodes.yaml"
    nodes.write_text(NODES + f"python: {sys.executable}\n")
    commands.run("nodes", "-n", nodes, "--set", f"frontend.port={http}", *ports[2:], "--check", "--no-lanes")


def main() -> None:
    there = [module for module in ONLY_FOR_TESTS if importlib.util.find_spec(module)]
    if there:
        sys.exit(f"{sys.prefix} has more than `make install` installs: {', '.join(there)}")
    with tempfile.TemporaryDirectory(prefix="triptych-install-") as folder:
        commands = Commands(Path(folder))
        for path in paths():
            commands.run(" ".join(path), "--help", says="sage:")
        commands.seen.clear()
        exercise(commands)
        groups = {path[:-1] for path in paths() if path}
        missing = set(paths()) - groups - commands.seen
    if missing:
        sys.exit(f"never run: {missing}")
    print("passed")


if __name__ == "__main__":
    main()
