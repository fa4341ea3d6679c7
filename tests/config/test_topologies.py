"""The files in ``configs/``: each engine on one GPU, two, four, eight, two nodes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from components.config import Topology, load
from components.config.topology import REPOSITORY
from components.protocol import Role
from tests.engines_trtllm import conftest as conftest  # TensorRT-LLM's stand-in, on the path from here on
from tests.engines_trtllm import models

CONFIGS = REPOSITORY / "configs"
ENGINES = {"transformers": "transformers", "sglang": "sglang", "trtllm": "tensorrt-llm"}
SIZES = {"1gpu": 1, "2gpu": 2, "4gpu": 4, "8gpu": 8, "2nodes": 16}
WORKERS: tuple[Role, ...] = ("encode", "prefill", "decode")
NAMED = [(engine, size) for engine in ENGINES for size in SIZES]


def read(engine: str, size: str, *sets: str) -> Topology:
    return load(CONFIGS / f"{engine}-{size}.yaml", sets, environ={})


def dealt(topology: Topology, role: Role) -> list[str]:
    """The device of each replica, as the supervisor deals them."""
    section = getattr(topology, role)
    return [(section.devices or (section.device,))[n % len(section.devices or (1,))] for n in range(section.replicas)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_file_loads(path: Path) -> None:
    topology = load(path, environ={})
    assert all(getattr(topology, role).replicas for role in ("frontend", "processor", *WORKERS))


@pytest.mark.parametrize(("engine", "size"), NAMED)
def test_each_engine_has_each_size_and_uses_every_gpu(engine: str, size: str) -> None:
    topology = read(engine, size)
    assert topology.engine == ENGINES[engine]
    placed = [device for role in WORKERS for device in dealt(topology, role)]
    gpus = min(SIZES[size], 8)
    assert set(placed) == {f"cuda:{index}" for index in range(gpus)}
    # From four GPUs on every worker has one to itself.
    assert len(placed) == {"1gpu": 3, "2gpu": 3}.get(size, SIZES[size])
    assert topology.model.max_context is not None
    assert min(topology.prefill.kv_tokens, topology.decode.kv_tokens) >= topology.model.max_context


@pytest.mark.parametrize("size", SIZES)
def test_the_engine_is_one_line(size: str) -> None:
    def settings(engine: str) -> list[str]:
        lines = (CONFIGS / f"{engine}-{size}.yaml").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not line.startswith(("#", "engine:"))]

    assert settings("transformers") == settings("sglang") == settings("trtllm")


def test_the_nodes_named_in_the_comment_hold_the_topology(tmp_path: Path) -> None:
    layout = pytest.importorskip("components.nodes.layout")
    for engine in ENGINES:
        comment = (CONFIGS / f"{engine}-2nodes.yaml").read_text(encoding="utf-8")
        nodes = tmp_path / "nodes.yaml"
        nodes.write_text("\n".join(re.findall(r"^#   (.*)$", comment, re.MULTILINE)))
        shares = layout.split(CONFIGS / f"{engine}-2nodes.yaml", [], layout.read(nodes))
        for share in shares.values():
            placed = [device for role in WORKERS for device in dealt(share, role)]
            assert sorted(placed) == [f"cuda:{index}" for index in range(8)]


@pytest.mark.parametrize("size", SIZES)
def test_tensorrt_llm_takes_the_arguments(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the contract of its argument classes, which refuse what they do not know."""
    from components.engines import trtllm

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    topology = read("trtllm", size, f"model.path={models.qwen(tmp_path)}")
    encode = trtllm.encode_engine(topology)
    prefill, decode = trtllm.prefill_engine(topology, None), trtllm.decode_engine(topology, None)  # type: ignore[arg-type]
    assert encode.format == prefill.format
    assert decode.max_context == models.CONTEXT


@pytest.mark.parametrize("size", SIZES)
def test_sglang_takes_the_arguments(size: str, tmp_path: Path) -> None:
    """By its own ServerArgs, where it is installed: it is not beside the other engines."""
    server_args = pytest.importorskip("sglang.srt.server_args", reason="sglang has an environment of its own")
    from components.engines.sglang.arguments import Arguments
    from components.engines.transformers.checkpoint import Checkpoint

    topology = read("sglang", size)
    checkpoint = Checkpoint.open(str(models.qwen(tmp_path)), device=dealt(topology, "decode")[-1])
    for arguments in (Arguments.for_prefill(checkpoint, topology), Arguments.for_decode(checkpoint, topology)):
        known = arguments.known(server_args.ServerArgs)
        assert known["max_total_tokens"] in (topology.prefill.kv_tokens, topology.decode.kv_tokens)
        assert known["disaggregation_transfer_backend"] == "nixl"
