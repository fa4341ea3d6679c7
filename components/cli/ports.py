"""Which ports the stack takes: looked at before anything starts, so that a used one is one clear line."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from components.config import Topology


class PortError(Exception):
    """A port cannot be used; the message says which setting changes it."""


def _problem(host: str, port: int) -> str | None:
    """Why ``port`` cannot be listened on, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a connection of an earlier run that lingers in TIME_WAIT is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
    return None


def _free(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def choose(topology: Topology, say: Callable[[str], None]) -> Topology:
    """Checks every port of the stack and returns the topology with the ports it will have.

    An HTTP port in use is an error, and so is an embedded server's port that was asked for. An embedded server's
    default port in use is not: nobody outside this stack needs to know it, so a free one is taken and said.
    """
    frontend = topology.frontend
    for port in range(frontend.port, frontend.port + frontend.replicas):
        if problem := _problem(frontend.host, port):
            raise PortError(
                f"port {port} {problem}: choose another with --port N (make: PORT=N, setting: frontend.port)"
            )
    taken = set(range(frontend.port, frontend.port + frontend.replicas))
    embedded = []
    if not topology.nats.servers:
        embedded.append(("nats", "port"))
    if not topology.etcd.endpoints:
        embedded += [("etcd", "port"), ("etcd", "peer_port")]
    values = topology.model_dump()
    for section, key in embedded:
        wanted: int = values[section][key]
        asked_for = key in getattr(topology, section).model_fields_set
        problem = f"is {section}'s and another part's" if wanted in taken else _problem("127.0.0.1", wanted)
        if problem and asked_for:
            raise PortError(f"port {wanted} {problem}: choose another with --set {section}.{key}=N")
        if problem:
            values[section][key] = _free(taken)
            say(f"port {wanted} {problem}; {section}.{key} is {values[section][key]} this time")
        taken.add(values[section][key])
    return Topology.model_validate(values)
