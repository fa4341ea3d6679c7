"""TensorRT-LLM: Qwen2.5-VL and LLaVA-Next on NVIDIA GPUs. Written to its interface; not run on hardware yet."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from components.engines.trtllm.model import Model

if TYPE_CHECKING:
    from components.config import Topology
    from components.engines.base import EncodeEngine
    from components.engines.trtllm.decode import TrtllmDecodeEngine
    from components.engines.trtllm.prefill import TrtllmPrefillEngine
    from components.nixl_connect import Connector


def encode_engine(topology: Topology) -> EncodeEngine:
    """TensorRT-LLM's encoder where it is installed, else transformers' tower: the rows mean the same.

    No choice is lost: TensorRT-LLM pins a transformers too old for our tower, so an environment has one or the other.
    """
    model = _model(topology)
    if find_spec("tensorrt_llm") is None:
        return _transformers_tower(topology, model)
    _place(topology.encode.device)
    from components.engines.trtllm.encode import TrtllmEncodeEngine

    return TrtllmEncodeEngine(model, max_batch=topology.encode.max_batch_images)


def prefill_engine(topology: Topology, connector: Connector) -> TrtllmPrefillEngine:
    _place(topology.prefill.device)
    from components.engines.trtllm.prefill import TrtllmPrefillEngine

    return TrtllmPrefillEngine(
        _model(topology),
        kv_tokens=topology.prefill.kv_tokens,
        max_batch_tokens=topology.prefill.max_batch_tokens,
        # Here it is the time for which a KV waits until a decode engine has room for it and comes.
        transfer_seconds=topology.transfer.lease_seconds,
    )


def decode_engine(topology: Topology, connector: Connector) -> TrtllmDecodeEngine:
    _place(topology.decode.device)
    from components.engines.trtllm.decode import TrtllmDecodeEngine

    return TrtllmDecodeEngine(
        _model(topology),
        kv_tokens=topology.decode.kv_tokens,
        max_batch=topology.decode.max_batch,
        transfer_seconds=topology.transfer.deadline_seconds,
    )


def _model(topology: Topology) -> Model:
    return Model.open(topology.model.path, dtype=topology.model.dtype, max_context=topology.model.max_context)


def _place(device: str) -> None:
    """TensorRT-LLM is imported only after the GPU is chosen: importing it may touch CUDA."""
    from components.engines.trtllm.devices import make_visible

    make_visible(device)


def _transformers_tower(topology: Topology, model: Model) -> EncodeEngine:
    import torch

    from components.engines.transformers.checkpoint import Checkpoint
    from components.engines.transformers.encode import TransformersEncodeEngine

    torch.set_num_threads(topology.encode.threads)
    tower = TransformersEncodeEngine(
        Checkpoint.open(str(model.folder), dtype=model.dtype, device=topology.encode.device)
    )
    # Prefill has no transformers to name the weights by, so both names are this engine's.
    tower.format = replace(tower.format, revision=model.format.revision)
    return tower
