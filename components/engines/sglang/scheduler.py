"""What runs in SGLang's scheduler process, before SGLang's own code does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_HUB_NAMES = {"model.language_model.": "model.", "model.visual.": "visual."}


def run_scheduler(server_args: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang's ``run_scheduler_process``, with what it lacks for our models and machines."""
    from sglang.srt.managers.scheduler import run_scheduler_process

    take_new_names()
    if server_args.device == "cpu":
        _call_host_memory_by_its_name()
    run_scheduler_process(server_args, *args, **kwargs)


def take_new_names() -> None:
    """transformers 5 may write a checkpoint with its own names for the weights; SGLang knows those of the hub."""
    from sglang.srt.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    load = Model.load_weights

    def load_weights(self: Any, weights: Iterable[tuple[str, Any]]) -> Any:
        return load(self, ((_hub_name(name), tensor) for name, tensor in weights))

    Model.load_weights = load_weights


def _hub_name(name: str) -> str:
    for prefix, hub in _HUB_NAMES.items():
        if name.startswith(prefix):
            return hub + name.removeprefix(prefix)
    return name


def _call_host_memory_by_its_name() -> None:
    """SGLang tells NIXL that all KV is ``VRAM``; where there is none, UCX then refuses to register it."""
    from sglang.srt.disaggregation.nixl import conn

    conn._normalize_kv_mem_kinds = lambda kinds, expected_len: ["DRAM"] * expected_len
