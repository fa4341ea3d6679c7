"""TensorRT-LLM as a prefill engine: ``context_only`` requests, whose KV the decode engine fetches."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

import torch

from components.engines.base import EngineError, FirstToken, ImageInfo, ImageRows, Prompt
from components.engines.transformers.positions import expand
from components.engines.trtllm.handover import Handover
from components.engines.trtllm.llm import Health, check_finish, sampling_params, start
from components.engines.trtllm.model import Model
from components.engines.trtllm.positions import mrope_handles
from components.engines.trtllm.release import DisaggregatedParams, known
from components.engines.trtllm.shared import Sharing, drop

_GLOBAL_IDS = 1 << 62
"""TensorRT-LLM takes ids from 2**42 on as unique among all its workers; these are random besides."""


class TrtllmPrefillEngine:
    """The KV stays in this engine's memory until decode has fetched it, or until the transfer's time is up."""

    def __init__(self, model: Model, *, kv_tokens: int, max_batch_tokens: int, transfer_seconds: float) -> None:
        self.format = model.format
        self.image_token_id = model.image_token_id
        self.max_context = min(model.max_context, kv_tokens)
        self.vocabulary = model.vocabulary
        self._model = model
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._running = 0
        self._health = Health()
        self._llm = start(
            model,
            kv_tokens=kv_tokens,
            transfer_seconds=transfer_seconds,
            # Each prompt in one piece, so the longest has to fit.
            max_num_tokens=max(max_batch_tokens, model.max_context),
            # Both are for generating; a context server must not overlap its schedule.
            disable_overlap_scheduler=True,
            cuda_graph_config=None,
        )

    async def start(self) -> None:
        pass

    def held(self) -> dict[str, int]:
        return {"requests": self._running}

    async def close(self) -> None:
        await asyncio.to_thread(self._llm.shutdown)

    def expand(self, token_ids: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
        return expand(token_ids, self.image_token_id, tokens)

    def source(self, token_ids: Sequence[int], images: Sequence[ImageInfo], cache_salt: str) -> bytes:
        return b""  # what decode must know is known only when the prompt is computed: see Handover

    async def prefill(self, prompt: Prompt, target: asyncio.Future[bytes], seconds: float) -> FirstToken:
        self._health.check()
        sharing = Sharing()
        self._running += 1
        try:
            began = time.perf_counter()
            inputs, fields, following = self._ask(prompt, sharing)
            request_id = _GLOBAL_IDS | secrets.randbits(61)
            fields |= {"request_type": "context_only", "disagg_request_id": request_id}
            with self._health.submitting():
                result = self._llm.generate_async(
                    inputs,
                    sampling_params(prompt.sampling, max_tokens=1),
                    disaggregated_params=DisaggregatedParams(**known(DisaggregatedParams, fields)),
                    cache_salt=prompt.cache_salt or None,
                )
            try:
                with self._health.running():
                    await result
                check_finish(result)
                await target
            finally:
                if not result.finished:
                    result.abort()
            handover = self._handover(prompt, result, request_id)
            return FirstToken(
                token=handover.first_gen_tokens[0],
                next_position=following,
                compute_seconds=time.perf_counter() - began,
                kv_bytes=0,  # TensorRT-LLM moves the KV itself, and only once decode asks
                kv_seconds=0.0,
                lane="",
                handover=handover.to_wire(),
            )
        finally:
            sharing.clear()
            self._running -= 1

    def _ask(self, prompt: Prompt, sharing: Sharing) -> tuple[dict[str, Any], dict[str, Any], int]:
        """The prompt, the fields of ``DisaggregatedParams``, and the rotary position after the prompt."""
        family, ids = self._model.family, list(prompt.token_ids)
        inputs: dict[str, Any] = {"prompt_token_ids": ids}
        fields: dict[str, Any] = {}
        following = len(ids)
        if prompt.images:
            # With pictures it must be text: releases differ in what they do to token ids, some drop the pictures.
            inputs = {"prompt": self._model.text(_collapsed(ids, self.image_token_id, prompt.images))}
            if family.handles:
                fields["multimodal_embedding_handles"] = [sharing.give(self._rows(image)) for image in prompt.images]
                fields["multimodal_hashes"] = [_hash(image) for image in prompt.images]
            else:
                # The code reads this key; the one that its TypedDict documents, multimodal_embeddings, it ignores.
                inputs["multi_modal_embeddings"] = {"image": [self._rows(image).clone() for image in prompt.images]}
        if family.mrope:
            # Without pictures too: a batch in which some have positions and some have none is for no release a matter
            # of course.
            handles, following = mrope_handles(self._model, ids, [image.grid for image in prompt.images], sharing)
            fields |= handles
        return inputs, fields, following

    def _rows(self, image: ImageRows) -> torch.Tensor:
        rows: torch.Tensor = image.slot.tensor(self._dtype, (image.tokens, self.format.width))
        return rows

    def _handover(self, prompt: Prompt, result: Any, request_id: int) -> Handover:
        output = result.outputs[0]
        params = output.disaggregated_params
        if params is not None:
            # Positions for a decode engine on this machine; ours makes its own, wherever it runs.
            drop(*(getattr(params, f"mrope_position_{name}_handle", None) for name in ("ids", "deltas")))
        token_ids = list(result.prompt_token_ids)
        if len(token_ids) != len(prompt.token_ids):
            raise EngineError(
                "internal", f"TensorRT-LLM made {len(token_ids)} tokens of a prompt of {len(prompt.token_ids)}"
            )
        grids = [image.grid for image in prompt.images]
        salt = prompt.cache_salt
        return Handover.of(params, request_id=request_id, token_ids=token_ids, grids=grids, cache_salt=salt)


def _collapsed(token_ids: Sequence[int], image_token_id: int, images: Sequence[ImageRows]) -> list[int]:
    """``token_ids`` with one placeholder a picture again."""
    counts = iter(images)
    ids: list[int] = []
    at = 0
    while at < len(token_ids):
        ids.append(token_ids[at])
        at += next(counts).tokens if token_ids[at] == image_token_id else 1
    return ids


def _hash(image: ImageRows) -> list[int]:
    """The content's SHA-256 as eight signed numbers of 32 bits: the same picture is the same KV."""
    digest = bytes.fromhex(image.content_hash)
    return [int.from_bytes(digest[at : at + 4], "big", signed=True) for at in range(0, 32, 4)]
