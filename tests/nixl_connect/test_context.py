"""The right device's context is current on the owner thread when UCX looks: as the agent is made, as a peer is loaded.

Raw NIXL without it reads GPU memory at 0.5 GB/s instead of hundreds, and says nothing. The driver is stood in for here;
``test_gpu.py`` asserts the lane itself.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from components.nixl_connect import Device, cuda
from components.nixl_connect import agent as module
from components.nixl_connect.agent import Agent

FIRST, SECOND = Device("cuda:0"), Device("cuda:1")


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order: contexts made current, agents made, peers loaded."""
    found: list[str] = []
    driver = SimpleNamespace(device_count=2, make_current=lambda device: found.append(f"current {device}"))
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    monkeypatch.setenv("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "y")  # else the agent sets it, and it stays
    api, bindings = module.load_nixl()

    def made(*arguments: Any) -> Any:
        found.append("agent")
        nixl = api.nixl_agent(*arguments)
        load = nixl.add_remote_agent

        def loaded(metadata: bytes) -> Any:
            found.append("load")
            return load(metadata)

        nixl.add_remote_agent = loaded
        return nixl

    recorded = SimpleNamespace(nixl_agent=made, nixl_agent_config=api.nixl_agent_config)
    monkeypatch.setattr(module, "load_nixl", lambda: (recorded, bindings))
    return found


def test_the_context_is_current_before_ucx_looks(happened: list[str]) -> None:
    agent, peer = Agent("here", ["UCX"], FIRST, {}), Agent("there", ["UCX"], SECOND, {})
    assert happened == ["current cuda:0", "agent", "current cuda:1", "agent"]
    del happened[:]
    agent.load_peer(peer.metadata())
    assert happened == ["load"], "it still is"


def test_a_peer_is_loaded_under_the_agents_own_device(happened: list[str]) -> None:
    agent, peer = Agent("here", ["UCX"], FIRST, {}), Agent("there", ["UCX"], FIRST, {})
    agent.make_current(SECOND)  # as memory of another GPU is registered
    del happened[:]
    agent.load_peer(peer.metadata())
    assert happened == ["current cuda:0", "load"]


def test_a_host_only_agent_needs_no_driver(happened: list[str]) -> None:
    Agent("here", ["UCX"], None, {}).load_peer(Agent("there", ["UCX"], None, {}).metadata())
    assert happened == ["agent", "agent", "load"]
