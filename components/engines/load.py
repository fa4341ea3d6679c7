"""The engine a topology names, imported only then: a panel pulls in no engine but its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from components.engines.base import DecodeEngine, EncodeEngine, PrefillEngine

if TYPE_CHECKING:
    from components.config import Topology
    from components.nixl_connect import Connector


class EngineModule(Protocol):
    """What an engine's package offers. Each loads the model, on any thread, and raises ValueError for a model that the
    engine does not serve."""

    def encode_engine(self, topology: Topology) -> EncodeEngine: ...

    def prefill_engine(self, topology: Topology, connector: Connector) -> PrefillEngine: ...

    def decode_engine(self, topology: Topology, connector: Connector) -> DecodeEngine: ...


_FOLDERS = {"transformers": "transformers", "sglang": "sglang", "tensorrt-llm": "trtllm"}


def engine(topology: Topology) -> EngineModule:
    """``topology.engine`` is one of the names that ``components.config`` admits."""
    return cast(EngineModule, import_module(f"components.engines.{_FOLDERS[topology.engine]}"))
