"""A model's dimensions, from its ``config.json``, and the numbers of parameters that follow from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class PlanError(Exception):
    """It cannot be planned; the message says why, and what would help."""


@dataclass(frozen=True)
class Language:
    """A Qwen2 decoder: grouped-query attention with biases on q, k and v, a gated MLP of three matrices."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Of all layers: what every token is multiplied with, norms and biases included."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (q + 2 * kv) + (q + 2 * kv) + q * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.intermediate + 2 * self.hidden)

    @property
    def head_parameters(self) -> int:
        """The matrix that makes logits of a hidden state; the embedding table has the same shape."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.hidden + self.head_parameters * (1 if self.tied else 2)


@dataclass(frozen=True)
class Vision:
    """The vision tower of Qwen2.5-VL: most layers attend within windows, ``full_layers`` of them to all patches."""

    layers: int
    full_layers: int
    hidden: int
    intermediate: int
    patch: int
    temporal: int
    channels: int
    merge: int
    window: int
    output: int

    @property
    def layer_parameters(self) -> int:
        """Of all layers: what every patch is multiplied with."""
        attention = self.hidden * 3 * self.hidden + 3 * self.hidden + self.hidden * self.hidden + self.hidden
        gated = 3 * self.hidden * self.intermediate + 2 * self.intermediate + self.hidden
        return self.layers * (attention + gated + 2 * self.hidden)

    @property
    def embed_parameters(self) -> int:
        """The convolution that makes a patch of pixels; no bias."""
        return self.channels * self.temporal * self.patch**2 * self.hidden

    @property
    def merger_parameters(self) -> int:
        """Two matrices that make one token of merge x merge patches."""
        wide = self.hidden * self.merge**2
        return self.hidden + wide * wide + wide + wide * self.output + self.output

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.embed_parameters + self.merger_parameters

    def patches(self, width: int, height: int) -> int:
        """Of a picture whose sides are rounded to whole tokens, as the picture processor does (``smart_resize``)."""
        side = self.patch * self.merge
        return (max(1, round(width / side)) * max(1, round(height / side))) * self.merge**2

    def tokens(self, width: int, height: int) -> int:
        return self.patches(width, height) // self.merge**2


@dataclass(frozen=True)
class Dimensions:
    name: str
    language: Language
    vision: Vision
    value_bytes: int
    """Bytes of a weight, and of a value of KV and embeddings."""


def read(path: Path) -> Dimensions:
    """From a model's folder or its ``config.json``. Raises ``PlanError``."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{file}: {error.strerror}; give a model's folder or its config.json") from error
    except ValueError as error:
        raise PlanError(f"{file} is not JSON: {error}") from error
    if config.get("model_type") != "qwen2_5_vl":
        raise PlanError(f"{file}: model_type is {config.get('model_type')!r}; the arithmetic is that of qwen2_5_vl")
    # Newer files keep the language model's part apart; older ones have it at the top.
    text: dict[str, Any] = config.get("text_config") or config
    vision: dict[str, Any] = config.get("vision_config") or {}
    dtype = str(text.get("dtype") or config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    try:
        return Dimensions(
            (path if path.is_dir() else path.parent).resolve().name,
            _language(text, bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))),
            _vision(vision),
            _BYTES[dtype],
        )
    except KeyError as error:
        raise PlanError(f"{file} has no {error}") from error


def _language(text: dict[str, Any], tied: bool) -> Language:
    heads = text["num_attention_heads"]
    return Language(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        heads=heads,
        kv_heads=text["num_key_value_heads"],
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=tied,
    )


def _vision(vision: dict[str, Any]) -> Vision:
    return Vision(
        layers=vision["depth"],
        full_layers=len(vision.get("fullatt_block_indexes", [])),
        hidden=vision["hidden_size"],
        intermediate=vision["intermediate_size"],
        patch=vision.get("patch_size", 14),
        temporal=vision.get("temporal_patch_size", 2),
        channels=vision.get("in_channels", vision.get("in_chans", 3)),
        merge=vision.get("spatial_merge_size", 2),
        window=vision.get("window_size", 112),
        output=vision["out_hidden_size"],
    )
