from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tensorrt_llm import contract_model
from tensorrt_llm._torch.shared_tensor import SharedTensorContainer
from tensorrt_llm.disaggregated_params import DisaggregatedParams
from tensorrt_llm.executor.executor import CppExecutorError
from tensorrt_llm.executor.result import GenerationResult, Response
from tensorrt_llm.executor.utils import RequestError
from tensorrt_llm.llmapi.llm_args import TorchLlmArgs
from tensorrt_llm.sampling_params import SamplingParams

_ids = itertools.count(1)
_MARK = b"\xff\x00"  # no text in any encoding, as the real state


class BaseLLM:
    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.args = TorchLlmArgs(
            model=model,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype,
            **kwargs,
        )
        self._config = json.loads((Path(model) / "config.json").read_text())
        self._mrope = self._config["model_type"] == "qwen2_5_vl"
        self._tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: str | None = None
        self._open = True

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: DisaggregatedParams | None = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> GenerationResult:
        if not self._open:
            raise RuntimeError("LLM is shutting down")
        if self._broken:
            raise CppExecutorError(self._broken)
        assert sampling_params is not None and disaggregated_params is not None, "only disaggregated requests here"
        kind = disaggregated_params.request_type
        contract_model.salts.append(cache_salt)
        if self.args.cache_transceiver_config is None or self.args.cache_transceiver_config.backend is None:
            raise ValueError("no cache transceiver")
        request = _Request(self, inputs, sampling_params, disaggregated_params)
        if kind == "context_only":
            if not self.args.disable_overlap_scheduler:
                raise ValueError("context_only needs disable_overlap_scheduler")
            if len(request.token_ids) > (self.args.max_num_tokens or 0):
                raise ValueError("the prompt should not exceed max_num_tokens")
            work = request.context()
        elif kind == "generation_only":
            work = request.generation(streaming)
        else:
            raise ValueError(f"{kind} is not for two engines")
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return request.result

    def shutdown(self) -> None:
        self._open = False

    def _corrupt(self, why: str) -> None:
        """From now on the engine is dead."""
        self._broken = why


class LLM(BaseLLM):
    pass


class _Request:
    """Takes in what it was given as the real one does: at once, and shared tensors exactly once."""

    def __init__(self, llm: BaseLLM, inputs: Any, sampling: SamplingParams, params: DisaggregatedParams) -> None:
        self._llm, self._sampling, self._params = llm, sampling, params
        self._mrope: tuple[torch.Tensor, int] | None = None
        self._rows: Sequence[torch.Tensor] = ()
        handles, embeddings = params.multimodal_embedding_handles, inputs.get("multi_modal_embeddings")
        image_token = llm._config["image_token_id"]
        if handles is not None:
            if not llm._mrope:
                raise ValueError("Multimodal disaggregated inference is not supported for this model")
            if not inputs.get("prompt"):
                raise ValueError("Text prompt is required but not provided")
            if params.request_type == "generation_only":
                raise ValueError("Generation-only mode should not need multimodal parameters")
            for handle in handles:
                if handle["tensor_size"][1] != llm._config["text_config"]["hidden_size"]:
                    raise RuntimeError("Multimodal embedding hidden size must match model hidden size")
            ids = llm._tokenizer.encode(inputs["prompt"]).ids
            assert ids.count(image_token) == len(handles), "Number of images must match number of mm_handles"
            self.token_ids = _expanded(ids, image_token, [h["tensor_size"][0] for h in handles], image_token)
            self._rows = [_take(handle) for handle in handles]
        elif embeddings is not None:
            if llm._mrope:
                raise NotImplementedError("Input processor does not support multimodal embedding input")
            if not inputs.get("prompt"):
                raise ValueError("Text prompt is required but not provided")
            self._rows = embeddings["image"]
            # Ids beyond the vocabulary, as this model's input processor has them.
            beyond = llm._config["text_config"]["vocab_size"] + 1
            ids = llm._tokenizer.encode(inputs["prompt"]).ids
            self.token_ids = _expanded(ids, image_token, [len(rows) for rows in self._rows], beyond)
        elif "prompt_token_ids" in inputs:
            self.token_ids = inputs["prompt_token_ids"]
        else:
            self.token_ids = llm._tokenizer.encode(inputs["prompt"]).ids
        if (params.mrope_position_ids_handle is None) != (params.mrope_position_deltas_handle is None):
            raise RuntimeError("mrope handles must both be provided, or both None")
        if params.mrope_position_ids_handle is not None and params.mrope_position_deltas_handle is not None:
            positions, delta = _take(params.mrope_position_ids_handle), _take(params.mrope_position_deltas_handle)
            assert positions.dtype == delta.dtype == torch.int32
            assert tuple(positions.shape) == (3, 1, len(self.token_ids)) and tuple(delta.shape) == (1, 1)
            self._mrope = positions, int(delta)
        self._aborting = asyncio.Event()
        self._answered = False
        self.result = GenerationResult(next(_ids), self.token_ids, self._abort)

    def _abort(self) -> None:
        if self._params.request_type == "generation_only" and not self._answered:
            self._llm._corrupt("aborted in the middle of a KV transfer")
        self._aborting.set()

    async def context(self) -> None:
        await asyncio.sleep(contract_model.pace)
        if self._aborting.is_set():
            self.result.responses.put_nowait(Response(finish_reason="cancelled"))
            return
        if self._rows and self._llm._mrope and self._mrope is None:
            self.result.responses.put_nowait(Response(error=RequestError("no mrope_position_ids")))
            return
        positions, delta = self._mrope or (None, 0)
        kv = contract_model.kv(self.token_ids, self._rows, positions)
        first = contract_model.token(kv, delta, 0)
        params = DisaggregatedParams(
            request_type="context_only",
            first_gen_tokens=[first],
            ctx_request_id=self._params.disagg_request_id or self.result.request_id,
            opaque_state=_MARK + kv + contract_model.kv(self.token_ids, (), None),
        )
        if self._mrope is not None:
            # For a decode engine on the same machine: copies, to be taken by whoever gets this.
            params.mrope_position_ids_handle = _share(self._mrope[0].clone())
            params.mrope_position_deltas_handle = _share(torch.tensor([[delta]], dtype=torch.int32))
        # The first token ends a context, unless it is a stop token, always for its length.
        reason = "stop" if first in (self._sampling.stop_token_ids or ()) else "length"
        self.result.responses.put_nowait(Response([first], reason, params))

    async def generation(self, streaming: bool) -> None:
        given = self._params
        assert given.opaque_state is not None and given.first_gen_tokens and given.ctx_request_id
        while contract_model.transfers_held:  # noqa: ASYNC110 - a flag that tests of several loops set
            await asyncio.sleep(0.005)
        if contract_model.transfer_fails is not None:
            self.result.responses.put_nowait(Response(error=contract_model.transfer_fails))
            return
        kv, prompt = given.opaque_state.removeprefix(_MARK)[:32], given.opaque_state[-32:]
        if prompt != contract_model.kv(self.token_ids, (), None):
            self.result.responses.put_nowait(Response(error=RequestError("the KV is another prompt's")))
            return
        delta = self._mrope[1] if self._mrope else 0
        pending: list[int] = []
        stops = self._sampling.stop_token_ids or ()  # ignore_eos is for the end token alone
        for index in range(self._sampling.max_tokens):
            # The first token comes from prefill and is a part of this answer too.
            token = contract_model.token(kv, delta, index) if index else given.first_gen_tokens[0]
            pending.append(token)
            last = index + 1 == self._sampling.max_tokens
            reason = "cancelled" if self._aborting.is_set() else "length" if last else None
            if token in stops:
                pending, reason = pending[:-1], "stop"  # a stop word is cut from what was said
            if streaming or reason:
                self._answered = True
                self.result.responses.put_nowait(Response(pending, reason))
                pending = []
            if reason:
                return
            await asyncio.sleep(contract_model.pace)


def _expanded(ids: list[int], image_token: int, counts: list[int], placeholder: int) -> list[int]:
    remaining = iter(counts)
    result: list[int] = []
    for token in ids:
        result += [placeholder] * next(remaining) if token == image_token else [token]
    return result


def _take(handle: dict[str, Any]) -> torch.Tensor:
    return SharedTensorContainer.from_dict(handle).get_local_view()


def _share(tensor: torch.Tensor) -> dict[str, Any]:
    return SharedTensorContainer.from_tensor(tensor).dump_to_dict()
