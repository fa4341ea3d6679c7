"""The servers beside the panels, and the ports of this node."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from components.config import Topology
from components.doctor.finding import Finding

_PATIENCE = 2.0
_LONGEST = 2**20
_SKEW_WARN, _SKEW_FAIL = 2.0, 5.0
"""Seconds. A lease is 30 by default; etcd's ``Date`` has whole seconds only."""


def host_port(address: str, default: int) -> tuple[str, int]:
    """``nats://[user:password@]host[:port]`` or ``host:port``."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    return parts.hostname or "127.0.0.1", parts.port or default


async def ask(host: str, port: int, request: bytes) -> bytes:
    """What a server says first, or to ``request``. Raises ``OSError`` or ``TimeoutError``."""
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(request)
            return await (_to_the_end(reader) if request else reader.readline())
        finally:
            writer.close()


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    """All that comes, as far as it is needed; a server that did not read all of the request resets at its end."""
    answer = bytearray()
    try:
        while len(answer) < _LONGEST and (chunk := await reader.read(65536)):
            answer += chunk
    except ConnectionResetError:
        if not answer:
            raise
    return bytes(answer)


def _no_answer(check: str, where: str, error: OSError | TimeoutError, setting: str) -> Finding:
    why = "it does not answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))
    return Finding(
        check,
        "fail",
        f"{where}: {why}",
        f"start it, or name the right one in {setting}; from another host it must listen on more than 127.0.0.1 and "
        "no firewall may stand between (docs/ports.md)",
    )


async def check_nats(address: str) -> Finding:
    host, port = host_port(address, 4222)
    began = time.perf_counter()
    try:
        greeting = await ask(host, port, b"")
    except (OSError, TimeoutError) as error:
        return _no_answer("nats", f"{host}:{port}", error, "nats.servers")
    if not greeting.startswith(b"INFO "):
        return Finding(
            "nats",
            "fail",
            f"what answers at {host}:{port} is no NATS: {greeting[:40]!r}",
            "name the right port in nats.servers",
        )
    milliseconds = (time.perf_counter() - began) * 1e3
    return Finding(
        "nats", "ok", f"{host}:{port} answers after {milliseconds:.1f} ms", numbers={"milliseconds": milliseconds}
    )


async def check_etcd(endpoint: str, now: float | None = None) -> list[Finding]:
    """Whether the member is healthy, and whether its clock and this node's agree."""
    host, port = host_port(endpoint, 2379)
    try:
        answer = await ask(host, port, f"GET /health HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    except (OSError, TimeoutError) as error:
        return [_no_answer("etcd", f"{host}:{port}", error, "etcd.endpoints")]
    if b'"health":"true"' not in answer:
        return [
            Finding(
                "etcd",
                "fail",
                f"{host}:{port} is not healthy: {answer[-80:]!r}",
                f"ask it why: `etcdctl --endpoints {host}:{port} endpoint status`; a full disk and a lost quorum are "
                "the usual reasons",
            )
        ]
    return [
        Finding("etcd", "ok", f"{host}:{port} is healthy"),
        *_skew(host, answer, time.time() if now is None else now),
    ]


def _skew(host: str, answer: bytes, now: float) -> list[Finding]:
    dates = [line[5:].decode().strip() for line in answer.split(b"\r\n") if line.lower().startswith(b"date:")]
    if not dates:
        return []
    # The header is cut to whole seconds: half a second is its mean error.
    skew = now - (parsedate_to_datetime(dates[0]).timestamp() + 0.5)
    numbers: dict[str, float | str] = {"seconds": round(skew, 1)}
    if abs(skew) < _SKEW_WARN:
        return [Finding("clock of etcd", "ok", f"agrees with that of {host} within {_SKEW_WARN:g} s", numbers=numbers)]
    return [
        Finding(
            "clock of etcd",
            "fail" if abs(skew) > _SKEW_FAIL else "warn",
            f"this node is {skew:+.0f} s from {host}: leases would end too early or too late",
            "run chrony or PTP on both",
            numbers,
        )
    ]


def check_port(host: str, port: int, what: str, setting: str) -> Finding:
    """Whether ``port`` can be listened on here."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection of an earlier run that lingers in TIME_WAIT is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                f"port {port}",
                "fail",
                f"{what} cannot listen on {host}:{port}: {error.strerror}",
                f"see who does with `ss -ltnp 'sport = :{port}'`, end that, or choose another ({setting})",
            )
    return Finding(f"port {port}", "ok", f"free for {what}")


def listening(topology: Topology, roles: Sequence[str], servers: bool, host: str) -> list[tuple[str, int, str, str]]:
    """(address, port, what, setting) of all that would listen on this node: ``docs/ports.md`` as data."""
    found = []
    if "frontend" in roles:
        for index in range(topology.frontend.replicas):
            port = topology.frontend.port + index
            found.append((topology.frontend.host, port, "the frontend", "frontend.port"))
    if servers:
        found.append((host, topology.nats.port, "NATS", "nats.port"))
        found.append((host, topology.etcd.port, "etcd", "etcd.port"))
        found.append(("127.0.0.1", topology.etcd.peer_port, "etcd's peers", "etcd.peer_port"))
    return found
