"""Which GPU TensorRT-LLM takes."""

from __future__ import annotations

import os

import torch


def make_visible(device: str) -> None:
    """Put the topology's GPU first among those that this process sees, before anything touches CUDA.

    TensorRT-LLM takes the first. The others stay visible: UCX copies directly only between GPUs that both sides see.
    """
    index = torch.device("cuda" if device == "auto" else device).index or 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    if index:
        if index >= len(devices):
            raise ValueError(f"{device}: this process sees {len(devices)} GPUs")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join([devices.pop(index), *devices])
