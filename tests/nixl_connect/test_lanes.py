"""The watch over every transfer's lane: it speaks once, and not of what is merely new."""

from __future__ import annotations

import pytest

from components.nixl_connect import Device
from components.nixl_connect.lanes import LaneWatch
from components.nixl_connect.states import OperationKind

GPUS = (Device("cuda:0"), Device("cuda:1"))
SIZE = 64 << 20
FAST, SLOW = SIZE / 200e9, SIZE / 0.5e9


def warnings(seconds: list[float], caplog: pytest.LogCaptureFixture, size: int = SIZE, lane: str = "cuda-cuda") -> int:
    watch, devices = LaneWatch(), (Device("cpu"),) * 2 if lane == "cpu-cpu" else GPUS
    for each in seconds:
        watch.saw(OperationKind.READ, lane, devices, size, each)
    return sum("READ cuda-cuda at 0.50 GB/s is a software path" in record.message for record in caplog.records)


def test_a_software_path_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings([SLOW] * 20, caplog) == 1


def test_a_first_transfer_may_be_slow(caplog: pytest.LogCaptureFixture) -> None:
    """It maps memory. On an H100 the first READ of 64 MiB had 1.6 GB/s, all others hundreds, and a warning came."""
    assert warnings([SLOW, FAST, FAST, SLOW, SLOW, FAST], caplog) == 0


def test_small_transfers_and_host_memory_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings([SLOW] * 20, caplog, size=1 << 20) == 0
    assert warnings([SLOW] * 20, caplog, lane="cpu-cpu") == 0
