"""TensorRT-LLM's ``MultimodalEncoder`` as an encode engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from components.engines.base import EngineError, PreparedImage
from components.engines.trtllm.llm import Health
from components.engines.trtllm.model import Model
from components.engines.trtllm.patches import Patches
from components.engines.trtllm.release import MultimodalEncoder
from components.engines.trtllm.shared import Handle, drop, take
from components.nixl_connect import Slot


class TrtllmEncodeEngine:
    """Its results are CUDA IPC handles, good for this machine; the rows are copied into memory that NIXL can read."""

    def __init__(self, model: Model, *, max_batch: int) -> None:
        self.format = model.format
        self._health = Health()
        self._model = model
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._patches = Patches.open(model.folder) if model.family.mrope else None
        self._encoder = MultimodalEncoder(model=str(model.folder), dtype=model.dtype, max_batch_size=max_batch)

    def prepare(self, image: Image.Image) -> PreparedImage:
        if self._patches is not None:
            grid = self._patches.grid(image.width, image.height)
            return PreparedImage(image, grid, math.prod(grid) // self._model.merge**2)
        tokens: int = self._encoder.input_processor.get_num_tokens_per_image(image=image)
        return PreparedImage(image, (1, 1, tokens), tokens)

    def encode(self, images: Sequence[PreparedImage], slots: Sequence[Slot]) -> None:
        results = self._run([image.pixels for image in images])
        for image, slot, result in zip(images, slots, results, strict=True):
            embedding, *others = _handles(result)
            rows = take(embedding)
            drop(*others)
            expected = (image.tokens, self.format.width)
            if tuple(rows.shape) != expected or rows.dtype != self._dtype:
                found = f"{tuple(rows.shape)} {rows.dtype}"
                raise EngineError("internal", f"TensorRT-LLM's encoder made {found} of a picture of {expected}")
            slot.tensor(self._dtype, expected).copy_(rows)
            if rows.is_cuda:
                # The reader is another process: it must not see rows that a stream has yet to write.
                torch.cuda.synchronize(rows.device)

    def warm_up(self) -> None:
        (result,) = self._run([Image.new("RGB", (224, 224))])
        drop(*_handles(result))

    def _run(self, images: Sequence[Image.Image]) -> list[Any]:
        placeholder = self._model.family.placeholder
        prompts = [{"prompt": placeholder, "multi_modal_data": {"image": [image]}} for image in images]
        with self._health.running():
            results: list[Any] = self._encoder.generate(prompts, use_tqdm=False)
        return results


def _handles(result: Any) -> list[Handle]:
    """The embedding's, then whatever else came: each must be taken once, or its memory is never free again."""
    params = result.disaggregated_params
    if params is None or not params.multimodal_embedding_handles:
        raise EngineError("internal", "TensorRT-LLM's encoder made no embedding of a picture")
    others = (getattr(params, f"mrope_position_{name}_handle", None) for name in ("ids", "deltas"))
    return [*params.multimodal_embedding_handles, *(handle for handle in others if handle is not None)]
