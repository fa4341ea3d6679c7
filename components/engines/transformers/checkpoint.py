"""A Qwen2.5-VL checkpoint, loaded by halves: encode takes the vision tower, prefill and decode the language model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLPreTrainedModel,
    Qwen2_5_VLTextModel,
)

from components.engines.base import EmbeddingFormat

_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and how to run it. ``max_context`` is in tokens, prompt and answer together."""

    folder: Path
    config: PretrainedConfig
    dtype: torch.dtype
    device: torch.device
    max_context: int

    @classmethod
    def open(
        cls, path: str, *, dtype: str = "auto", device: str = "auto", max_context: int | None = None
    ) -> Checkpoint:
        """``path`` is a folder or a hub name. ``auto``: CUDA and bfloat16 where there is a GPU, else CPU and float32.

        float32 on a CPU because greedy tokens must not hang on how a batch was put together.

        Raises ValueError when the folder holds another architecture.
        """
        folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, allow_patterns=_FILES))
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "qwen2_5_vl":
            raise ValueError(f"{path}: the transformers engine serves qwen2_5_vl, this is {config.model_type}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            device = "cuda:0"
        if dtype == "auto":
            dtype = "bfloat16" if torch.device(device).type == "cuda" else "float32"
        allowed = int(config.text_config.max_position_embeddings)
        return cls(folder, config, getattr(torch, dtype), torch.device(device), min(max_context or allowed, allowed))

    @property
    def merge(self) -> int:
        """Patches along one side that become one token."""
        return int(self.config.vision_config.spatial_merge_size)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table: token ids are below it."""
        return int(self.config.text_config.vocab_size)

    @property
    def format(self) -> EmbeddingFormat:
        width = int(self.config.vision_config.out_hidden_size)
        return EmbeddingFormat(
            width=width,
            dtype=str(self.dtype).removeprefix("torch."),
            row_bytes=width * self.dtype.itemsize,
            revision=self.revision,
            device=str(self.device),
        )

    @property
    def revision(self) -> str:
        """Digest of configuration, preprocessing and the head of each weight file (its tensor table and first MiB).

        Not the whole of the weights: those of a 7B model take a minute to hash.
        """
        digest = hashlib.sha256(str(self.dtype).encode())
        for name in ("config.json", "preprocessor_config.json"):
            file = self.folder / name
            digest.update(file.read_bytes() if file.exists() else b"")
        for file in sorted(self.folder.glob("*.safetensors")):
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_HEAD_BYTES))
        return digest.hexdigest()[:16]

    def vision_tower(self) -> Qwen2_5_VisionTransformerPretrainedModel:
        """The vision tower alone; no language weight is read."""
        return self._load(
            _VisionTower, self.config.vision_config, {r"^(model\.)?visual\.": "", r"^(model|lm_head)\.": "unused."}
        )

    def language_model(self) -> LanguageModel:
        """The language model with its head; no vision weight is read."""
        return self._load(
            LanguageModel,
            self.config,
            {r"^model\.language_model\.": "language_model.", r"^model\.(?!visual|language_model)": "language_model."},
        )

    def _load(self, cls: Any, config: PretrainedConfig, key_mapping: dict[str, str]) -> Any:
        model = cls.from_pretrained(
            self.folder, config=config, dtype=self.dtype, key_mapping=key_mapping, attn_implementation="sdpa"
        )
        return model.to(self.device).eval()


class _VisionTower(Qwen2_5_VisionTransformerPretrainedModel):
    _keys_to_ignore_on_load_unexpected = (r".*",)


class LanguageModel(Qwen2_5_VLPreTrainedModel):
    """The language half of ``Qwen2_5_VLForConditionalGeneration``: token or image rows in, logits out."""

    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "language_model.embed_tokens.weight"}  # noqa: RUF012 (transformers' form)
    _keys_to_ignore_on_load_unexpected = (r"visual\.",)

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.language_model = Qwen2_5_VLTextModel._from_config(config.text_config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head
