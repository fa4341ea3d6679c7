"""The kernels that SGLang imports from here and, on a CPU, never calls: it has their like in torch."""

from typing import Any, NoReturn


def _kernel(*args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError("this vllm is a stand-in without kernels")


awq_dequantize = fused_add_rms_norm = rms_norm = rotary_embedding = _kernel
