"""The default engine: Qwen2.5-VL by Hugging Face transformers, on a CPU or a GPU.

Each engine is imported where it is made: another engine borrows from this package (positions, the vision tower) in an
environment whose transformers may not have all that the rest of it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from components.config import Topology
    from components.engines.transformers.checkpoint import Checkpoint
    from components.engines.transformers.decode import TransformersDecodeEngine
    from components.engines.transformers.encode import TransformersEncodeEngine
    from components.engines.transformers.prefill import TransformersPrefillEngine
    from components.nixl_connect import Connector


def encode_engine(topology: Topology) -> TransformersEncodeEngine:
    from components.engines.transformers.encode import TransformersEncodeEngine

    torch.set_num_threads(topology.encode.threads)
    return TransformersEncodeEngine(_checkpoint(topology, topology.encode.device))


def prefill_engine(topology: Topology, connector: Connector) -> TransformersPrefillEngine:
    from components.engines.transformers.prefill import TransformersPrefillEngine

    torch.set_num_threads(topology.prefill.threads)
    return TransformersPrefillEngine(
        _checkpoint(topology, topology.prefill.device),
        connector,
        kv_tokens=topology.prefill.kv_tokens,
        max_batch_tokens=topology.prefill.max_batch_tokens,
        deadline=topology.transfer.deadline_seconds,
    )


def decode_engine(topology: Topology, connector: Connector) -> TransformersDecodeEngine:
    from components.engines.transformers.decode import TransformersDecodeEngine

    torch.set_num_threads(topology.decode.threads)
    return TransformersDecodeEngine(
        _checkpoint(topology, topology.decode.device),
        connector,
        kv_tokens=topology.decode.kv_tokens,
        block_tokens=topology.decode.block_tokens,
        max_batch=topology.decode.max_batch,
        deadline=topology.transfer.deadline_seconds,
    )


def _checkpoint(topology: Topology, device: str) -> Checkpoint:
    from components.engines.transformers.checkpoint import Checkpoint

    return Checkpoint.open(
        topology.model.path, dtype=topology.model.dtype, device=device, max_context=topology.model.max_context
    )
