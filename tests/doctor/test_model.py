"""A model's folder with one thing broken at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from components.config import Topology
from components.doctor.finding import Finding
from components.doctor.model import check_model

TOKENIZER = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}


def weights(size: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "model.safetensors").write_bytes(weights(1000))
    return tmp_path


def check(folder: Path) -> Finding:
    return check_model(Topology.model_validate({"model": {"path": str(folder)}}))


def test_a_whole_one(folder: Path) -> None:
    found = check(folder)
    assert found.level == "ok", found
    assert found.numbers["tensors"] == 1


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    found = check(tmp_path / "none")
    assert found.level == "fail"
    assert "no name of a model at the hub" in found.says


BREAKS: dict[str, Callable[[Path], object]] = {
    "config.json: No such file": lambda folder: (folder / "config.json").unlink(),
    "config.json is not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "no model_type": lambda folder: (folder / "config.json").write_text("{}"),
    "tokenizer.json: No such file": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer.json: ": lambda folder: (folder / "tokenizer.json").write_text('{"model": 3}'),
    "model.safetensors: No such file": lambda folder: (folder / "model.safetensors").unlink(),
    "no safetensors file": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
    "is damaged": lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"notjson!"),
    "not copied to its end": lambda folder: (folder / "model.safetensors").write_bytes(weights(1000)[:-1]),
    "shard.safetensors: No such file": lambda folder: (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "shard.safetensors"}}'
    ),
}


@pytest.mark.parametrize("says", BREAKS)
def test_a_broken_one(says: str, folder: Path) -> None:
    BREAKS[says](folder)
    found = check(folder)
    assert found.level == "fail"
    assert says in found.says


def test_several_files_of_weights(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    for name in ("1.safetensors", "2.safetensors"):
        (folder / name).write_bytes(weights(500))
    assert check(folder).numbers["tensors"] == 2
