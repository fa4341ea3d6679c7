"""Lanes are measured between real processes; what cannot move bytes, or moves them slowly, is said."""

from __future__ import annotations

from typing import Any

import pytest

from components.doctor import lanes
from components.doctor.lanes import check_lanes, judge, protocol_of

LOG = """\
[1795.3] [vm:1 :0]   +--------+-------------+----+
[1795.3] [vm:1 :0]   | a@1 self cfg#0            |
[1795.3] [vm:1 :0]   | remote memory write by ucp_put* from host memory to host |
[1795.3] [vm:1 :0]   | 0..inf | zero-copy   | self/memory |
[1795.3] [vm:1 :0]   | a@1 intra-node cfg#1      |
[1795.3] [vm:1 :0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1795.3] [vm:1 :0]   | Range  | Description | Config |
[1795.3] [vm:1 :0]   | 0..4095 | short     | cma/memory |
[1795.3] [vm:1 :0]   | 4096..inf | zero-copy   | cma/memory |
[1795.3] [vm:1 :0]   | a@1 intra-node cfg#1      |
[1795.3] [vm:1 :0]   | remote memory read by ucp_get* into cuda/GPU0 memory from cuda |
[1795.3] [vm:1 :0]   | 0..inf | software emulation | tcp/eth0 |
"""


def lane(local: str, remote: str, speed: float, software: bool) -> dict[str, Any]:
    return {
        "kind": "read",
        "local": local,
        "remote": remote,
        "name": "x-y",
        "microseconds": 40.0,
        "gb_per_s": speed,
        "software": software,
        "advice": ["do this"] if software else [],
    }


def test_what_ucx_says() -> None:
    assert protocol_of(LOG, "read", "cpu", "cpu") == "zero-copy cma/memory"
    assert protocol_of(LOG, "read", "cuda:0", "cuda:1") == "software emulation tcp/eth0"
    assert protocol_of(LOG, "read", "cpu", "cuda:1") == ""
    assert protocol_of(LOG, "write", "cpu", "cpu") == ""  # with itself is not with a peer


@pytest.mark.parametrize(
    ("measured", "level"),
    [
        (lane("cuda:0", "cuda:1", 0.5, True), "fail"),  # the trap: no CUDA context when the peer was loaded
        (lane("cuda:0", "cuda:1", 290.0, False), "ok"),
        (lane("cpu", "cpu", 0.05, False), "warn"),
        (lane("cpu", "cpu", 4.0, False), "ok"),
    ],
)
def test_what_a_measured_lane_is_worth(measured: dict[str, Any], level: str) -> None:
    (found,) = judge([measured], LOG)
    assert found.level == level
    assert found.check == f"read {measured['local']} ← {measured['remote']}"
    assert level != "fail" or found.change == "do this"


async def test_host_memory() -> None:
    found = await check_lanes(0, {})
    assert [each.check for each in found] == ["read cpu ← cpu", "write cpu → cpu"]
    for each in found:
        assert float(each.numbers["GB_per_s"]) > 0
        assert each.numbers["protocol"]


async def test_tcp_between_processes_of_one_machine_is_said() -> None:
    found = await check_lanes(0, {"UCX_TLS": "tcp"})
    assert len(found) == 2
    for each in found:
        assert "tcp/" in str(each.numbers["protocol"]), found
        assert each.level == "warn"
        assert "ptrace_scope" in each.change


async def test_transports_without_tcp() -> None:
    (found,) = await check_lanes(0, {"UCX_TLS": "sm,self"})
    assert found.level == "fail"
    assert "no bytes move" in found.says


async def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = await check_lanes(1, {})
    assert found.level == "fail"
    assert "cuda:0" in found.says


async def test_a_measurement_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_SECONDS", 0.05)
    (found,) = await check_lanes(0, {})
    assert found.level == "fail"
    assert "nothing after 0.05 s" in found.says
