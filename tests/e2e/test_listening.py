"""A stack on one machine is for that machine: nothing of it listens where others could connect."""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import openai

from benchmarks.stack import Stack
from tests.e2e.test_http import answer, turn
from tests.e2e.test_tokens import picture

_TCP_LISTEN, _UDP_UNCONNECTED = "0A", "07"
PANELS_WITH_DATA = {"frontend", "workers.encode", "workers.prefill", "workers.decode"}


def _below(pid: int) -> dict[int, str]:
    """Every process that descends from ``pid``, with its command line."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            except OSError:  # it ended while we looked
                continue
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in {pid, *found}} - found:
        found |= new
    return {each: Path(f"/proc/{each}/cmdline").read_text().replace("\0", " ") for each in sorted(found)}


def _address(text: str) -> IPv4Address | IPv6Address:
    """The kernel writes each word of an address in the machine's byte order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(text), 8)]
    return ip_address(b"".join(words))


def _listening() -> dict[str, tuple[IPv4Address | IPv6Address, int]]:
    """Address and port of every socket that takes what comes, by its inode."""
    found = {}
    for table, state in (("tcp", _TCP_LISTEN), ("tcp6", _TCP_LISTEN), ("udp", _UDP_UNCONNECTED), ("udp6", "07")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                address, port = fields[1].split(":")
                found[fields[9]] = (_address(address), int(port, 16))
    return found


def _inodes(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed while we looked
            kind, _, rest = str(entry.readlink()).partition(":[")
            if kind == "socket":
                found.add(rest[:-1])
    return found


def test_nothing_listens_outside_of_loopback(client: openai.OpenAI, stack: Stack) -> None:
    # UCX listens from the first transfer on: a picture makes every panel move something.
    assert answer(client, turn("What do you see?", picture(8)))
    sockets = _listening()
    listening = {
        command: [sockets[inode] for inode in _inodes(pid) & sockets.keys()]
        for pid, command in _below(os.getpid()).items()
    }
    outside = {
        command: addresses
        for command, addresses in listening.items()
        if any(not address.is_loopback for address, _ in addresses)
    }
    assert outside == {}
    with_data = {panel for panel in PANELS_WITH_DATA for command in listening if f"-m {panel} " in command}
    assert with_data == PANELS_WITH_DATA
    for panel in PANELS_WITH_DATA:
        assert all(addresses for command, addresses in listening.items() if f"-m {panel} " in command), listening
