"""The node list: which machine runs how many of what, and how a command gets there."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.config import ConfigError, Topology, load
from components.protocol import ROLES

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
Count = Annotated[int, Field(ge=0)]


class Node(BaseModel):
    """One machine. ``address`` is where the others reach it; ``set`` overrides settings for what runs there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    servers: bool = False
    frontend: Count = 0
    processor: Count = 0
    encode: Count = 0
    prefill: Count = 0
    decode: Count = 0
    set: tuple[str, ...] = ()


class NodeList(BaseModel):
    """``launch`` starts a command on ``{node}``, hands it our standard input and gives us its output."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launch: str = "ssh -o BatchMode=yes -o ServerAliveInterval=15 {node}"
    python: str = sys.executable
    nodes: dict[str, Node] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_place_for_servers(self) -> Self:
        if sum(node.servers for node in self.nodes.values()) != 1:
            raise ValueError("exactly one node has `servers: true`: NATS and etcd run there")
        if "{node}" not in self.launch:
            raise ValueError("launch has no {node}")
        return self

    def command(self, node: str) -> list[str]:
        """What starts the agent on ``node``; nothing in it needs quoting on the way through ssh's remote shell."""
        return [*(part.replace("{node}", node) for part in shlex.split(self.launch)), *self._agent(node)]

    def _agent(self, node: str) -> list[str]:
        return [shlex.quote(self.python), "-m", "components.nodes.agent", node]

    @property
    def head(self) -> Node:
        """The node with the servers."""
        return next(node for node in self.nodes.values() if node.servers)


def read(path: Path) -> NodeList:
    """Raises ``ConfigError``."""
    try:
        return NodeList.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def split(config: Path | None, sets: list[str], nodes: NodeList) -> dict[str, Topology]:
    """The topology of each node: its share of the replicas, and the servers' addresses as all nodes see them.

    Raises ``ConfigError`` if the nodes hold more or fewer of a role than the topology says.
    """
    whole = load(config, sets)
    for role in ROLES:
        wanted: int = getattr(whole, role).replicas
        placed = sum(getattr(node, role) for node in nodes.nodes.values())
        if wanted != placed:
            raise ConfigError(f"{role}: the topology has {wanted}, the node list places {placed}")
    head = nodes.head.address
    servers = [
        f"nats.servers=[nats://{head}:{whole.nats.port}]",
        f"etcd.endpoints=[{head}:{whole.etcd.port}]",
    ]
    shares = {}
    for name, node in nodes.nodes.items():
        counts = [f"{role}.replicas={getattr(node, role)}" for role in ROLES]
        # A frontend that only its own machine reaches is of no use here; an address that was chosen stays.
        host = [f"frontend.host={node.address}"] if whole.frontend.host in _LOOPBACK else []
        shares[name] = load(config, [*sets, *servers, *counts, *host, *node.set])
    return shares
