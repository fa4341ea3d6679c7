"""Lanes are measured between real processes; what cannot move bytes, or moves them slowly, is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.doctor.lanes import KINDS, LaneError, Measured, Station, check_lanes, judge, measure, pairs, protocol_of

SIZE = 4 * 2**20

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


def test_what_ucx_says() -> None:
    assert protocol_of(LOG, "read", cuda=False) == "zero-copy cma/memory"
    assert protocol_of(LOG, "read", cuda=True) == "software emulation tcp/eth0"
    assert protocol_of(LOG, "write", cuda=False) == ""  # what it does with itself is not what it does with a peer


@pytest.mark.parametrize(
    ("here", "there", "speed", "level"),
    [
        ("cuda:0", "cuda:1", 0.5, "fail"),  # the trap: no CUDA context when the peer was loaded
        ("cuda:0", "cuda:1", 290.0, "ok"),
        ("cpu", "cpu", 0.1, "warn"),
        ("cpu", "cpu", 4.0, "ok"),
        ("cpu", "cuda:0", 0.9, "ok"),
    ],
)
def test_what_a_measured_lane_is_worth(here: str, there: str, speed: float, level: str) -> None:
    found = judge(Measured(here, there, "read", speed, 0.01, "p"))
    assert found.level == level
    assert replace(found, says="", numbers={}).check == f"lane {here} read {there}"


def test_which_processes_are_started() -> None:
    assert pairs(0) == ["cpu", "cpu"]
    assert pairs(1) == ["cpu", "cpu", "cuda:0", "cuda:0"]
    assert pairs(2) == ["cpu", "cpu", "cuda:0", "cuda:1"]


async def test_host_memory() -> None:
    found = await check_lanes(0, {}, SIZE)
    assert [each.check for each in found] == [f"lane cpu {kind} cpu" for kind in KINDS]
    for each in found:
        assert float(each.numbers["GB_per_s"]) > 0
        assert each.numbers["protocol"]


async def test_tcp_alone_is_named() -> None:
    found = await check_lanes(0, {"UCX_TLS": "tcp"}, SIZE)
    assert all("tcp/" in str(each.numbers["protocol"]) for each in found), found


async def test_transports_without_tcp() -> None:
    (found,) = await check_lanes(0, {"UCX_TLS": "sm,self"}, SIZE)
    assert found.level == "fail"
    assert "no bytes move" in found.says


async def test_the_other_process_dies(tmp_path: Path) -> None:
    async with (
        await Station.start("cpu", SIZE, tmp_path / "a", {}) as here,
        await Station.start("cpu", SIZE, tmp_path / "b", {}) as there,
    ):
        await here.ready()
        await there.ready()
        there._process.kill()
        with pytest.raises(LaneError, match="ended"):
            await measure(here, there)


async def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    async with await Station.start("cuda:63", SIZE, tmp_path / "a", {}) as station:
        with pytest.raises(LaneError, match="ended"):
            await station.ready()
