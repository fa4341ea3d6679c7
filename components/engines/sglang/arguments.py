"""What ``sglang.Engine`` is started with. Names come and go between releases; 0.5.17 and 0.5.23 are known to work."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.engines.transformers.checkpoint import Checkpoint
from components.runtime.servers import lasting_port

if TYPE_CHECKING:
    from components.config import Topology

log = logging.getLogger(__name__)

# Plain torch kernels. Without sleep_on_idle an engine with nothing to do burns a core.
_ON_CPU = {
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "image_processor_backend": "pil",
    "mem_fraction_static": 0.1,
    "sleep_on_idle": True,
}
# The pool is capped by max_total_tokens, so the fraction only has to be enough, of what is free when an engine starts:
# engines that share a GPU may start in any order. The fourth of 7B on 80 GB needs 0.86.
_ON_GPU = {
    "attention_backend": "triton",
    "mm_attention_backend": "triton_attn",
    "mem_fraction_static": 0.95,
}


@dataclass(frozen=True)
class Arguments:
    """``engine`` are fields of ``sglang.ServerArgs``, ``chosen`` those that the topology sets over them;
    ``environment`` must be set before sglang is imported.

    ``bootstrap`` is the host and port at which decode engines find this prefill engine (a decode engine has none).
    """

    engine: dict[str, Any]
    chosen: Mapping[str, Any]
    environment: dict[str, str]
    bootstrap: tuple[str, int] | None = None

    @classmethod
    def for_prefill(cls, checkpoint: Checkpoint, topology: Topology) -> Arguments:
        chosen = topology.prefill.engine_arguments
        port = chosen.get("disaggregation_bootstrap_port", lasting_port())
        if not isinstance(port, int):
            raise ValueError(f"prefill.engine_arguments.disaggregation_bootstrap_port: {port!r} is no port")
        engine = _common(checkpoint, topology, topology.prefill.kv_tokens) | {
            "disaggregation_mode": "prefill",
            "disaggregation_bootstrap_port": port,
            "host": _host(),  # the bootstrap server binds to it
            "chunked_prefill_size": topology.prefill.max_batch_tokens,
            "max_prefill_tokens": topology.prefill.max_batch_tokens,
        }
        if checkpoint.device.type != "cpu":
            # The prompt's rows stay on the GPU on their way to the scheduler; through host memory 9 MB take 23 ms.
            engine |= {"mm_feature_transport": "cuda_ipc", "disable_cuda_graph": True}
        return cls(engine, chosen, _environment(topology), (_host(), port))

    @classmethod
    def for_decode(cls, checkpoint: Checkpoint, topology: Topology) -> Arguments:
        engine = _common(checkpoint, topology, topology.decode.kv_tokens) | {
            "disaggregation_mode": "decode",
            "max_running_requests": topology.decode.max_batch,
            # Our own budget admits a request only when the whole of its answer has room.
            "num_reserved_decode_tokens": 1,
        }
        if checkpoint.device.type == "cpu":
            engine["disaggregation_decode_retraction_backup"] = "none"  # the default pins host memory through CUDA
        else:
            engine["disable_prefill_cuda_graph"] = True
        return cls(engine, topology.decode.engine_arguments, _environment(topology))

    @classmethod
    def for_encode(cls, checkpoint: Checkpoint, topology: Topology) -> Arguments:
        names = {
            *("model_path", "device", "base_gpu_id", "dtype", "context_length", "log_level", "port", "nccl_port"),
            *("attention_backend", "mm_attention_backend", "sampling_backend", "grammar_backend"),
            *("image_processor_backend", "disable_cuda_graph"),
        }
        engine = {name: value for name, value in _common(checkpoint, topology, 0).items() if name in names}
        return cls(engine | {"encoder_only": True}, {}, _environment(topology))

    def known(self, server_args: type) -> dict[str, Any]:
        """What to start with: of our names those that this release's ``ServerArgs`` has, and all of the topology's."""
        names = inspect.signature(server_args).parameters
        unknown = sorted(set(self.engine) - set(names))
        if unknown:
            log.info("this release of sglang has no %s", ", ".join(unknown))
        return {name: value for name, value in self.engine.items() if name in names} | dict(self.chosen)


def _common(checkpoint: Checkpoint, topology: Topology, kv_tokens: int) -> dict[str, Any]:
    device = checkpoint.device
    return {
        **(_ON_CPU if device.type == "cpu" else _ON_GPU),
        "model_path": str(checkpoint.folder),
        "device": device.type,
        "base_gpu_id": device.index or 0,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "context_length": min(checkpoint.max_context, kv_tokens),
        "max_total_tokens": kv_tokens,
        "disaggregation_transfer_backend": "nixl",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "skip_tokenizer_init": True,  # token ids in, token ids out
        "incremental_streaming_output": True,
        "log_level": "warning" if topology.log_level == "info" else topology.log_level,
        # The defaults are the same for each engine, and two of them share a machine. SGLang binds these when its
        # processes have started: a port from the kernel's own range may be somebody's connection by then.
        "port": lasting_port(),
        "nccl_port": lasting_port(),
    }


def _host() -> str:
    """Where other machines reach this one: SGLang's own variable, as its documentation has it."""
    return os.environ.get("SGLANG_HOST_IP") or os.environ.get("HOST_IP") or "127.0.0.1"


def _environment(topology: Topology) -> dict[str, str]:
    transfer = topology.transfer
    return {
        "SGLANG_HOST_IP": _host(),
        # Prefill waits for decode, which asks at once. 300 s by default, for which a request whose other half died
        # holds its memory.
        "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": str(math.ceil(transfer.lease_seconds)),
        # Decode waits for prefill, which has to read pictures, to wait its turn and to compute first: that may take
        # what the request may take. That prefill is gone our panel knows sooner, and aborts.
        "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": str(math.ceil(topology.frontend.request_timeout_seconds)),
        # An engine that crashes would wait a minute for a core dump, and its worker with it.
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
        **{f"UCX_{name}": value for name, value in topology.ucx.items()},
    }
