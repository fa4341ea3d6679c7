from __future__ import annotations

import itertools
import os
from typing import Any

import torch

_numbers = itertools.count()
# Weak on purpose is nothing here: as with CUDA IPC, memory that was offered stays until somebody takes it.
_offered: dict[int, torch.Tensor] = {}


class SharedTensorContainer:
    """A handle is taken once, by a process of this machine; what the sharing does to a CPU tensor it does here too."""

    def __init__(self, method_key: int, tensor_handle: dict[str, Any]) -> None:
        self.method_key = method_key
        self.tensor_handle = tensor_handle

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, local: bool = False) -> SharedTensorContainer:
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            raise AssertionError("a view: sharing it would move all of its storage into shared memory")
        number = next(_numbers)
        _offered[number] = tensor
        handle = {
            "tensor_size": list(tensor.shape),
            "tensor_stride": list(tensor.stride()),
            "dtype": str(tensor.dtype),
            "storage_handle": f"{os.getpid()}:{number}",
        }
        return cls(2, handle)

    @classmethod
    def from_dict(cls, tensor_info: dict[str, Any]) -> SharedTensorContainer:
        info = dict(tensor_info)
        return cls(info.pop("method_key"), info)

    def get_local_view(self) -> torch.Tensor:
        process, number = self.tensor_handle["storage_handle"].split(":")
        if int(process) != os.getpid():
            raise RuntimeError("a handle of another process of the contract")
        return _offered.pop(int(number))

    def dump_to_dict(self) -> dict[str, Any]:
        return {**self.tensor_handle, "method_key": self.method_key}


def offered() -> int:
    """How many tensors nobody has taken yet."""
    return len(_offered)
