from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tensorrt_llm import contract_model
from tensorrt_llm._torch.shared_tensor import SharedTensorContainer
from tensorrt_llm.disaggregated_params import DisaggregatedParams
from tensorrt_llm.llmapi.llm_args import TorchLlmArgs


class MultimodalEncoder:
    def __init__(
        self,
        model: str | Path,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        **kwargs: Any,
    ) -> None:
        self.args = TorchLlmArgs(
            model=model,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype,
            mm_encoder_only=True,
            **kwargs,
        )
        self._config = json.loads((Path(model) / "config.json").read_text())
        self.input_processor = _InputProcessor(self._config)

    def generate(self, inputs: Any | Sequence[Any], use_tqdm: bool = True) -> Any:
        if not isinstance(inputs, list):
            return self._one(inputs)
        return [self._one(each) for each in inputs]

    def _one(self, inputs: dict[str, Any]) -> Any:
        (image,) = inputs["multi_modal_data"]["image"]
        if inputs["prompt"].count(self.input_processor.placeholder) != 1:
            raise ValueError("the prompt's placeholders do not match its pictures")
        tokens = self.input_processor.get_num_tokens_per_image(image=image)
        dtype = getattr(torch, self.args.dtype)
        rows = contract_model.embedding(image.tobytes(), tokens, self._config["text_config"]["hidden_size"], dtype)
        params = DisaggregatedParams(multimodal_embedding_handles=[_share(rows)], multimodal_hashes=[[0] * 8])
        if self.input_processor.mrope:
            params.mrope_position_ids_handle = _share(torch.zeros(3, 1, tokens + 2, dtype=torch.int32))
            params.mrope_position_deltas_handle = _share(torch.zeros(1, 1, dtype=torch.int32))
        return SimpleNamespace(disaggregated_params=params)


class _InputProcessor:
    def __init__(self, config: dict[str, Any]) -> None:
        self.mrope = config["model_type"] == "qwen2_5_vl"
        self.placeholder = "<|image_pad|>" if self.mrope else "<image>"

    def get_num_tokens_per_image(self, *, image: Image.Image, **kwargs: Any) -> int:
        """For pictures whose sides are multiples of 28 pixels, and not so big that they are made smaller."""
        assert image.width % 28 == 0 and image.height % 28 == 0
        return image.width // 28 * (image.height // 28)


def _share(tensor: torch.Tensor) -> dict[str, Any]:
    return SharedTensorContainer.from_tensor(tensor).dump_to_dict()
