"""Each check of the machine: what it says of a good one, and of one where the thing it checks is broken."""

from __future__ import annotations

import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.doctor.finding import Finding
from components.doctor.node import (
    MIB,
    check_clock,
    check_environment,
    check_gpus,
    check_memlock,
    check_nixl,
    check_shm,
)


def test_a_finding_that_is_not_ok_says_what_to_change() -> None:
    with pytest.raises(ValueError, match="what to change"):
        Finding("x", "warn", "bad")


def test_nixl_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_nixl().level == "ok"
    for package in ("nixl", "nixl_cu12", "nixl_cu13"):
        monkeypatch.setitem(sys.modules, f"{package}._api", None)
        monkeypatch.setitem(sys.modules, package, None)
    found = check_nixl()
    assert found.level == "fail"
    assert "pip install" in found.change


def test_locked_memory_matters_beside_an_rdma_card_only(tmp_path: Path) -> None:
    assert check_memlock(8 * MIB, tmp_path).level == "ok"
    (tmp_path / "mlx5_0").mkdir()
    limited = check_memlock(8 * MIB, tmp_path)
    assert limited.level == "fail"
    assert "mlx5_0" in limited.says and "memlock" in limited.change
    assert check_memlock(resource.RLIM_INFINITY, tmp_path).level == "ok"


@pytest.mark.parametrize(("free", "level"), [(16 * MIB, "fail"), (64 * MIB, "warn"), (4096 * MIB, "ok")])
def test_shared_memory_of_that_size(free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert check_shm(Path("/")).level == level


def test_no_shared_memory_at_all(tmp_path: Path) -> None:
    assert check_shm(tmp_path / "none").level == "fail"


def test_a_clock_that_was_never_set_and_one_that_nobody_keeps() -> None:
    assert check_clock(now=0.0).level == "fail"
    assert check_clock(kernel_status=0x40).level == "warn"
    assert check_clock(kernel_status=0x01).level == "ok"


def test_gpus_that_the_process_cannot_use(tmp_path: Path) -> None:
    assert check_gpus(None, tmp_path, {}).level == "ok"
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    without_driver = check_gpus(None, tmp_path, {})
    assert without_driver.level == "fail"
    assert "libcuda" in without_driver.says
    assert "CUDA_VISIBLE_DEVICES is ''" in check_gpus(None, tmp_path, {"CUDA_VISIBLE_DEVICES": ""}).says
    hidden = check_gpus(1, tmp_path, {"CUDA_VISIBLE_DEVICES": "0"})
    assert hidden.level == "warn"
    assert "1 of 2" in hidden.says
    assert check_gpus(2, tmp_path, {}).level == "ok"


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64,expandable_segments:True", "fail"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments: True", "fail"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False", "ok"),
        ("UCX_TLS", "cuda_ipc,cuda_copy,sm", "fail"),
        ("UCX_TLS", "rc,cuda,tcp", "ok"),
        ("UCX_TLS", "^mm", "ok"),
        ("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "n", "warn"),
        ("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "y", "ok"),
    ],
)
def test_a_variable_that_slows_transfers(name: str, value: str, level: str) -> None:
    found = check_environment({name: value})
    assert found.level == level
    assert level == "ok" or name in found.says
