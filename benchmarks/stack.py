"""A whole topology in child processes, for benchmarks and tests."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.runtime.servers import die_with_parent, free_port

READY = re.compile(r"(http://\S+) answers for model")


@dataclass(frozen=True)
class Stack:
    """A running stack: its HTTP address, and where its NATS (``nats://…``) and etcd (``host:port``) answer."""

    url: str
    nats: str
    etcd: str


@contextlib.contextmanager
def running_stack(
    config: Path | None = None, sets: Sequence[str] = (), *, cwd: Path | None = None, within: float | None = None
) -> Iterator[Stack]:
    """A stack that ``triptych up`` started and that answers, ``within`` seconds if that is given; drained on leaving.

    Raises RuntimeError with what it printed when it does not come up, or does not end with status 0.
    """
    http, nats, etcd, peer = (free_port() for _ in range(4))
    ports = {"frontend.port": http, "nats.port": nats, "etcd.port": etcd, "etcd.peer_port": peer}
    command = [sys.executable, "-m", "components.cli", "up"]
    command += ["-c", str(config)] if config else []
    for setting in (*(f"{name}={port}" for name, port in ports.items()), *sets):
        command += ["--set", setting]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, preexec_fn=die_with_parent
    )
    printed: list[str] = []
    patience = threading.Timer(within or 0, process.terminate)
    try:
        if within is not None:
            patience.start()
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if READY.search(line):
                break
        else:
            raise RuntimeError("the stack did not start:\n" + "".join(printed))
        patience.cancel()
        yield Stack(f"http://127.0.0.1:{http}", f"nats://127.0.0.1:{nats}", f"127.0.0.1:{etcd}")
    finally:
        patience.cancel()
        process.send_signal(signal.SIGTERM)
        printed += process.communicate()[0].splitlines(keepends=True)
    if process.returncode != 0:
        raise RuntimeError(f"the stack ended with status {process.returncode}:\n" + "".join(printed))
