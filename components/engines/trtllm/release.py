"""What is used of TensorRT-LLM, and what the installed release of it knows.

The names are those of releases 1.2 and 1.3, whose classes differ by a few fields: ``known`` leaves out what the
installed one has not. Importing this file takes the GPU's libraries; only the engines' own files do so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tensorrt_llm import __version__
from tensorrt_llm._torch.shared_tensor import SharedTensorContainer
from tensorrt_llm.executor import CppExecutorError
from tensorrt_llm.llmapi import (
    LLM,
    CacheTransceiverConfig,
    DisaggregatedParams,
    KvCacheConfig,
    MultimodalEncoder,
    SamplingParams,
)

__all__ = [
    "LLM",
    "CacheTransceiverConfig",
    "CppExecutorError",
    "DisaggregatedParams",
    "KvCacheConfig",
    "MultimodalEncoder",
    "SamplingParams",
    "SharedTensorContainer",
    "known",
    "require_mrope",
]


def known(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` without the fields that this release's dataclass or pydantic model ``cls`` does not have."""
    names = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else cls.model_fields
    return {name: value for name, value in values.items() if name in names}


def require_mrope() -> None:
    """Raises ValueError for a release that cannot be told rotary positions: it would answer, and wrongly."""
    names = ("mrope_position_ids_handle", "mrope_position_deltas_handle")
    if len(known(DisaggregatedParams, dict.fromkeys(names))) < len(names):
        raise ValueError(
            f"TensorRT-LLM {__version__} cannot take the rotary positions of a prompt with pictures; 1.2 and newer can"
        )
