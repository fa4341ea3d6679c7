"""TensorRT-LLM's ``LLM`` as a context or a generation engine, and how it is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components import background
from components.engines.base import EngineError
from components.engines.trtllm.model import Model
from components.engines.trtllm.release import (
    LLM,
    CacheTransceiverConfig,
    CppExecutorError,
    KvCacheConfig,
    SamplingParams,
    known,
    require_mrope,
)
from components.protocol import Sampling


def start(model: Model, *, kv_tokens: int, transfer_seconds: float, **arguments: Any) -> Any:
    """Loads the model; minutes for a large one. The vision tower is loaded too: no release can do without everywhere.

    Raises ValueError for a model that this release cannot serve in two halves.
    """
    if model.family.mrope:
        require_mrope()
    transceiver = {
        "backend": "NIXL",
        "max_tokens_in_buffer": model.max_context,
        # A decode worker that never fetches a KV must not hold prefill's memory for ever, nor the other way round.
        "kv_transfer_timeout_ms": int(transfer_seconds * 1e3),
    }
    return LLM(
        model=str(model.folder),
        dtype=model.dtype,
        max_seq_len=model.max_context,
        # Without hashes, two pictures of one size are the same token ids: reuse would answer for the wrong one.
        kv_cache_config=KvCacheConfig(max_tokens=kv_tokens, enable_block_reuse=model.family.handles),
        cache_transceiver_config=CacheTransceiverConfig(**known(CacheTransceiverConfig, transceiver)),
        **arguments,
    )


def sampling_params(sampling: Sampling, max_tokens: int) -> Any:
    """Token ids in, token ids out: text is the processor's affair."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed & 0x7FFF_FFFF_FFFF_FFFF,  # TensorRT-LLM takes none below 0.
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=None if sampling.ignore_eos else list(sampling.stop_token_ids) or None,
        detokenize=False,
    )


def stops(sampling: Sampling) -> frozenset[int]:
    """Token ids that end the answer and are not part of it."""
    return frozenset(() if sampling.ignore_eos else sampling.stop_token_ids)


class Health:
    """Whether TensorRT-LLM's engine lives. Its death ends the process: nothing that it is asked after that can succeed.
    The first request that meets it says so, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dead = False

    def check(self) -> None:
        """Raises EngineError when it is dead. Before tensors are shared for it: it would not take them any more."""
        if self._dead:
            raise _gone()

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """``generate_async`` checks its input before it returns: what it raises there is this request's fault."""
        try:
            with self.running():
                yield
        except (ValueError, TypeError, NotImplementedError) as error:
            raise EngineError("invalid_request", f"TensorRT-LLM refuses the request: {error}") from error

    @contextmanager
    def running(self) -> Iterator[None]:
        """What a result raises while it is waited for is the engine's fault; another worker may do better."""
        try:
            yield
        except CppExecutorError as error:
            self._died(error)
            raise _gone() from error
        except RuntimeError as error:
            raise EngineError("internal", f"TensorRT-LLM: {error}", retryable=True) from error

    def _died(self, error: BaseException) -> None:
        with self._lock:
            first, self._dead = not self._dead, True
        if first:
            background.fail("TensorRT-LLM's engine", error)


def _gone() -> EngineError:
    return EngineError("unavailable", "the TensorRT-LLM engine of this worker died", retryable=True)


def check_finish(result: Any) -> None:
    """Raises EngineError for a request that ended without an error and without its answer: a transfer out of time."""
    reason = result.outputs[0].finish_reason
    if reason not in ("stop", "length"):
        raise EngineError("transfer_failed", f"TensorRT-LLM ended the request: {reason}", retryable=True)
