"""Tensors on their way to and from TensorRT-LLM's own process: CUDA IPC on a GPU, shared memory on a CPU.

A handle works on this machine only and must be taken exactly once: until then the memory behind it is not free.
"""

from __future__ import annotations

from typing import Any

import torch

from components.engines.trtllm.release import SharedTensorContainer

Handle = dict[str, Any]


class Sharing:
    """Tensors given to one request; kept alive until ``clear``, which must come after its end."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    def give(self, tensor: torch.Tensor) -> Handle:
        """A handle on a copy.

        Sharing moves the whole storage of a CPU tensor, here a slab that NIXL has registered; and with a copy, the slot
        can be used again while the engine still reads.
        """
        copy = tensor.to("cuda" if torch.cuda.is_available() else "cpu", copy=True)
        if copy.is_cuda:
            torch.cuda.synchronize(copy.device)
        self._kept.append(copy)
        handle: Handle = SharedTensorContainer.from_tensor(copy).dump_to_dict()
        return handle

    def clear(self) -> None:
        self._kept.clear()


def take(handle: Handle) -> torch.Tensor:
    """The tensor behind a handle that the engine gave; its memory is the engine's until the tensor is dropped."""
    tensor: torch.Tensor = SharedTensorContainer.from_dict(handle).get_local_view()
    return tensor


def drop(*handles: Handle | None) -> None:
    """Take what nobody here needs, so that the engine can free it."""
    for handle in handles:
        if handle is not None:
            take(handle)
