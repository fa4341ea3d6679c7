"""A real ``triptych up`` with real servers, and roles that do nothing but start, answer and end.

The roles are packages with the names of the real ones in the working directory, where ``python -m`` looks first: what
is tested is the supervisor, in a second and without a model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from components.config.source import PREFIX
from components.config.topology import REPOSITORY
from components.runtime.servers import free_port

PACKAGES = {
    "frontend": "frontend",
    "processor": "processor",
    "encode": "workers/encode",
    "prefill": "workers/prefill",
    "decode": "workers/decode",
}

SERVICE = """
import asyncio, json, os, time
from contextlib import suppress
from pathlib import Path
from components.telemetry.ready import announce_ready

HOPS = [{"stage": "encode", "name": "encode", "start": 1.0, "milliseconds": 2.5, "bytes": 1234, "lane": "shm"}]
ANSWERS = {
    "GET /ready": "ok",
    "GET /v1/models": json.dumps({"data": [{"id": "tiny-vl"}]}),
    "POST /v1/chat/completions": "".join(
        f"data: {event if isinstance(event, str) else json.dumps(event)}\\n\\n"
        for event in (
            {"choices": [{"delta": {"content": "A red circle."}}]},
            {"choices": [], "triptych": {"hops": HOPS}},
            "[DONE]",
        )
    ),
}

async def answer(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode().lower()
    if "content-length: " in head:
        await reader.readexactly(int(head.split("content-length: ")[1].split("\\r")[0]))
    body = ANSWERS[" ".join(head.split()[:2]).replace("get", "GET").replace("post", "POST")]
    if Path("mute").exists() and body.startswith("data:"):
        body = ""
    writer.write(f"HTTP/1.1 200 OK\\r\\ncontent-length: {len(body)}\\r\\nconnection: close\\r\\n\\r\\n{body}".encode())
    await writer.drain()
    writer.close()

async def run(topology, instance):
    role = instance.split("-")[0]
    print("settings:", topology.decode.max_batch, os.environ["OMP_NUM_THREADS"], flush=True)
    if Path(f"fail-{role}").exists():
        raise RuntimeError(f"{role} has no weights")
    if Path(f"load-{role}").exists():
        print("loading", flush=True)
        await asyncio.to_thread(time.sleep, 3600)
    if role == "frontend":
        await asyncio.start_server(answer, topology.frontend.host, topology.frontend.port)
    announce_ready()
    try:
        await asyncio.Event().wait()
    finally:
        if Path(f"hang-{role}").exists():
            print("hanging", flush=True)
            await asyncio.Event().wait()
        print("drained", flush=True)
"""


def write_roles(folder: Path) -> None:
    """The five packages, below ``folder``."""
    for role, package in PACKAGES.items():
        place = folder / package
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
        (place / "service.py").write_text(SERVICE)
        (place / "__main__.py").write_text(f'from components.cli.role import main\n\nmain("{role}")\n')
    (folder / "workers" / "__init__.py").touch()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


class Stack:
    """One ``triptych`` process in ``folder``, its output, and all that it started."""

    def __init__(self, folder: Path, *arguments: str, before: str = "") -> None:
        """``before`` is code that runs in ``triptych`` first."""
        # Every process of the stack inherits it, so that each can be found, also when its parent is gone.
        self._mark = f"STACK_TEST={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        kept = {key: text for key, text in os.environ.items() if not key.startswith(PREFIX)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom components.cli.main import main\nmain()", *arguments],
            cwd=folder,
            env={**kept, name: value, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(
            lambda: self.output.count(text) >= times or self.process.poll() is not None, f"{text!r} in: {self.output}"
        )
        assert self.output.count(text) >= times, self.output

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 20.0) -> int:
        """Waits for the end of ``triptych`` itself; returns its exit status."""
        status = self.process.wait(seconds)
        self._reader.join(5.0)
        return status

    def processes(self) -> dict[int, str]:
        """Every living process of the stack, ``triptych`` included, with its command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended while we looked
                continue
        return found

    def find(self, text: str) -> int:
        """The one process whose command line holds ``text``."""
        (pid,) = [pid for pid, command in self.processes().items() if text in command]
        return pid

    def gone(self) -> None:
        wait_until(lambda: not self.processes(), f"no process left: {self.processes()}", 5.0)

    def close(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):  # its parent's end was its own
                os.kill(pid, signal.SIGKILL)
        self.end()


def ports() -> list[str]:
    """Options for ports that nobody has."""
    http, nats, etcd, peer = (free_port() for _ in range(4))
    embedded = (f"nats.port={nats}", f"etcd.port={etcd}", f"etcd.peer_port={peer}")
    return ["--port", str(http), *(part for setting in embedded for part in ("--set", setting))]
