"""A whole topology in child processes, for benchmarks and tests."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

READY = re.compile(r"(http://\S+) answers for model")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_stack(config: Path | None = None, sets: Sequence[str] = (), *, cwd: Path | None = None) -> Iterator[str]:
    """The URL of a stack that ``triptych up`` started and that answers; drained on leaving.

    Raises RuntimeError with what it printed when it does not come up, or does not end with status 0.
    """
    ports = dict.fromkeys(("frontend.port", "nats.port", "etcd.port", "etcd.peer_port"))
    settings = [*(f"{name}={free_port()}" for name in ports), *sets]
    command = [sys.executable, "-m", "components.cli", "up"]
    command += ["-c", str(config)] if config else []
    for setting in settings:
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd)
    printed: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if found := READY.search(line):
                yield found[1]
                break
        else:
            raise RuntimeError("the stack did not start:\n" + "".join(printed))
    finally:
        process.send_signal(signal.SIGTERM)
        printed += process.communicate()[0].splitlines(keepends=True)
    if process.returncode != 0:
        raise RuntimeError(f"the stack ended with status {process.returncode}:\n" + "".join(printed))
