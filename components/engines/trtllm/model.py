"""A model folder as the TensorRT-LLM engine sees it: a few numbers of its configuration, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from components.engines.base import EmbeddingFormat, EngineError

_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "*.model"]
_HEAD_BYTES = 1 << 20
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Configurations leave out what equals their class's default, and this is Llama's and Mistral's.
_HIDDEN_SIZE, _VOCABULARY = 4096, 32000


@dataclass(frozen=True)
class Family:
    """How TensorRT-LLM takes the pictures of a kind of model.

    ``placeholder`` is a picture in a text prompt. ``handles``: embeddings come as shared tensors in
    ``DisaggregatedParams``, with a hash each; else as tensors in the prompt's ``multi_modal_embeddings``, which carry
    no hash. ``mrope``: rotary positions follow the pictures' grids.
    """

    placeholder: str
    handles: bool
    mrope: bool


FAMILIES = {
    "qwen2_5_vl": Family("<|vision_start|><|image_pad|><|vision_end|>", handles=True, mrope=True),
    "llava_next": Family("<image>", handles=False, mrope=False),
}


@dataclass(frozen=True)
class Model:
    """``max_context`` is in tokens, prompt and answer together; ``merge`` patches along a side become one token."""

    folder: Path
    kind: str
    family: Family
    dtype: str
    width: int
    merge: int
    image_token_id: int
    vocabulary: int
    max_context: int

    @classmethod
    def open(cls, path: str, *, dtype: str = "auto", max_context: int | None = None) -> Model:
        """``path`` is a folder or a hub name; ``auto`` is bfloat16. Raises ValueError for a model not served here."""
        folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, allow_patterns=_FILES))
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
        if kind not in FAMILIES:
            raise ValueError(f"{path}: the tensorrt-llm engine serves {', '.join(FAMILIES)}; this is {kind}")
        # Newer transformers nest the language model's part, older wrote it flat.
        text, vision = config.get("text_config") or config, config["vision_config"]
        allowed = int(text.get("max_position_embeddings") or config["max_position_embeddings"])
        return cls(
            folder=folder,
            kind=kind,
            family=FAMILIES[kind],
            dtype="bfloat16" if dtype == "auto" else dtype,
            width=int(text.get("hidden_size", _HIDDEN_SIZE)),
            merge=int(vision.get("spatial_merge_size", 1)),
            image_token_id=int(config["image_token_id"] if "image_token_id" in config else config["image_token_index"]),
            vocabulary=int(text.get("vocab_size", config.get("vocab_size", _VOCABULARY))),
            max_context=min(max_context or allowed, allowed),
        )

    @cached_property
    def format(self) -> EmbeddingFormat:
        return EmbeddingFormat(
            width=self.width,
            dtype=self.dtype,
            row_bytes=self.width * _ITEM_BYTES[self.dtype],
            revision=self._revision(),
            device="cuda:0" if torch.cuda.is_available() else "cpu",
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def text(self, token_ids: Sequence[int]) -> str:
        """A text that TensorRT-LLM's tokenizer turns into ``token_ids`` again.

        Prompts with pictures can be given to it as text only, and other tokens than the processor's would be another
        prompt: raises EngineError ``invalid_request`` when there is no such text. That happens to an answer continued
        from its middle when the model had split a word in a way the tokenizer never does.
        """
        ids = list(token_ids)
        # Once more without the first token: where a tokenizer puts a beginning-of-text token, it is not written.
        for written in (ids, ids[1:]):
            text = self.tokenizer.decode(written, skip_special_tokens=False)
            if self.tokenizer.encode(text).ids == ids:
                return str(text)
        raise EngineError("invalid_request", "this prompt's tokens cannot be given to TensorRT-LLM as text")

    def _revision(self) -> str:
        """Digest of configuration, preprocessing and the head of each weight file, as a name for what rows mean."""
        digest = hashlib.sha256(self.dtype.encode())
        for name in ("config.json", "preprocessor_config.json"):
            file = self.folder / name
            digest.update(file.read_bytes() if file.exists() else b"")
        for file in sorted(self.folder.glob("*.safetensors")):
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_HEAD_BYTES))
        return digest.hexdigest()[:16]
