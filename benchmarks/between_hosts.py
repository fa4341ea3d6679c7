"""``benchmarks.transfer`` between two machines: what the network between them gives NIXL.

    python -m benchmarks.between_hosts serve                      on one
    python -m benchmarks.between_hosts measure HOST --json F      on the other
    python -m benchmarks.between_hosts indexed SERVICE            both, in an indexed Job of Kubernetes with two pods

``measure`` takes the options of ``benchmarks.transfer`` and, to pass or fail, ``--min-read``, ``--min-write`` (GB/s of
the largest operations) and ``--max-small`` (microseconds of the smallest). The two speak JSON, an object a line, over
one TCP connection, and whoever reaches that port can make ``serve`` expose memory of its own making: no other.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import transfer
from benchmarks.transfer import Bench
from benchmarks.transfer_other import other_process
from benchmarks.transfer_points import Point, compare

PORT = 18515
RESULT = "RESULT "
"""Begins the line of the log that holds the result as JSON."""
_CONNECT_SECONDS = 300.0
"""The other pod's image may have to be pulled first."""
_PAUSE = 0.5


class Wire:
    """What a ``multiprocessing`` pipe does, between machines and without pickle."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._come = bytearray()
        """What the other has said and nobody has asked for: two of its messages may come as one."""

    def send(self, value: Any) -> None:
        self._connection.sendall(json.dumps(value, default=_encode).encode() + b"\n")

    def recv(self) -> Any:
        while b"\n" not in self._come:
            chunk = self._connection.recv(65536)
            if not chunk:
                raise EOFError("the other machine hung up")
            self._come += chunk
        line, _, self._come = self._come.partition(b"\n")
        return json.loads(line, object_hook=_decode)

    def poll(self, seconds: float) -> bool:
        return b"\n" in self._come or bool(select.select([self._connection], [], [], seconds)[0])

    def close(self) -> None:
        self._connection.close()


def _encode(value: Any) -> dict[str, Any]:
    if isinstance(value, Point):
        return {"point": asdict(value)}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError(f"cannot be sent: {type(value)}")


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() == {"point"}:
        return Point(**value["point"])
    if value.keys() == {"bytes"}:
        return base64.b64decode(value["bytes"])
    return value


class _Elsewhere:
    """Stands for the other process."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def join(self, seconds: float) -> None:
        """It ends by itself once it has been told to."""

    def kill(self) -> None:
        self._wire.close()


class TwoHosts(Bench):
    def __init__(self, options: argparse.Namespace, address: tuple[str, int]) -> None:
        super().__init__(options)
        self._address = address

    def start_other(self, here: str, there: str, size: int) -> Any:
        wire = Wire(connect(self._address))
        wire.send([here, there, size])
        self.pipe = wire
        return _Elsewhere(wire)


def connect(address: tuple[str, int]) -> socket.socket:
    """Waits for the other machine. Raises ``SystemExit`` with what to look at."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection(address, timeout=None)
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"{address[0]}:{address[1]} after {_CONNECT_SECONDS:g} s: {error}") from None
        time.sleep(_PAUSE)


def serve(port: int) -> int:
    """Plays the other process for one measurement after another, until the other machine has no more."""
    with socket.create_server(("", port)) as listener:
        print(f"listening on {port}", flush=True)
        connection, _ = listener.accept()
        wire = Wire(connection)
        here, there, size = wire.recv()
        other_process(wire, here, there, size, [])
        wire.close()
    return 0


def judge(rows: Sequence[dict[str, Any]], limits: argparse.Namespace) -> list[str]:
    """What is not as it must be; nothing if all limits hold."""
    ours = [row for row in rows if row["what"] == "ours" and row["buffers"] == row["in_flight"] == 1]
    problems = []
    for kind, least in (("read", limits.min_read), ("write", limits.min_write)):
        largest = max((row for row in ours if row["kind"] == kind), key=lambda row: row["size"])
        if least is not None and largest["GB_per_s"] < least:
            problems.append(f"{kind} of {largest['size']:,} B: {largest['GB_per_s']} GB/s, at least {least} wanted")
    smallest = min(ours, key=lambda row: row["size"])
    if limits.max_small is not None and smallest["p50_us"] > limits.max_small:
        problems.append(
            f"{smallest['kind']} of {smallest['size']:,} B: {smallest['p50_us']} us, at most {limits.max_small} wanted"
        )
    return problems


def measure(host: str, port: int, limits: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the benchmark, prints its result as one line of JSON; 1 if a limit does not hold."""
    options = transfer.parser().parse_args(["--extra", "--quick", *arguments])
    if len(options.pairs) != 1:
        raise SystemExit("one pair of devices at a time")
    bench = TwoHosts(options, (host, port))
    here, there = options.pairs[0].split(",")
    asyncio.run(bench.pair(here, there))
    problems = judge(bench.rows, limits)
    result = {
        "passed": not problems,
        "problems": problems,
        "hosts": [socket.gethostname(), host],
        "rows": bench.rows,
        "compared": compare(bench.rows),
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print(RESULT + json.dumps(result), flush=True)
    return 1 if problems else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.between_hosts", description=__doc__.split("\n")[0])
    made.add_argument("part", choices=["serve", "measure", "indexed"])
    made.add_argument("host", nargs="?", help="measure: who serves; indexed: the Service that names the pods")
    made.add_argument("--port", type=int, default=PORT)
    made.add_argument("--min-read", type=float, help="GB/s")
    made.add_argument("--min-write", type=float, help="GB/s")
    made.add_argument("--max-small", type=float, help="microseconds")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options, rest = parser().parse_known_args(argv)
    part, host = options.part, options.host
    if part == "indexed":
        # Kubernetes gives each pod of an indexed Job its number, and the name JOB-NUMBER.SERVICE.
        part = "serve" if os.environ["JOB_COMPLETION_INDEX"] == "0" else "measure"
        host = f"{socket.gethostname().rpartition('-')[0]}-0.{host}"
    if part == "serve":
        return serve(options.port)
    if host is None:
        parser().error("measure needs a HOST")
    return measure(host, options.port, options, rest)


if __name__ == "__main__":
    sys.exit(main())
