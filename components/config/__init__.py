"""Topology files, environment and ``--set`` to typed settings."""

from components.config.errors import ConfigError
from components.config.load import load
from components.config.topology import (
    Decode,
    Encode,
    Etcd,
    Frontend,
    Media,
    Model,
    Nats,
    Prefill,
    Processor,
    Topology,
    Transfer,
)

__all__ = [
    "ConfigError",
    "Decode",
    "Encode",
    "Etcd",
    "Frontend",
    "Media",
    "Model",
    "Nats",
    "Prefill",
    "Processor",
    "Topology",
    "Transfer",
    "load",
]
