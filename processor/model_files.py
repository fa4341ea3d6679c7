"""The small files of a model folder that say how to talk to it. The weights are not touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template*"]
# The names under which a tokenizer_config.json gives special tokens and a chat template may use them.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ModelFilesError(Exception):
    """The folder cannot be served; the message says which file lacks what."""


@dataclass(frozen=True)
class ModelFiles:
    """``image_token_id`` is None for a model without eyes; ``stop_token_ids`` end an answer."""

    tokenizer: Tokenizer
    chat_template: str
    special_tokens: dict[str, str]
    stop_token_ids: tuple[int, ...]
    image_token_id: int | None
    max_context: int


def load(path: str) -> ModelFiles:
    """Reads a folder, or the same few files of a hub name. Raises ``ModelFilesError``."""
    folder = _folder(path)
    config, settings = _json(folder / "config.json"), _json(folder / "tokenizer_config.json", optional=True)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise ModelFilesError(f"{tokenizer_file} is missing; only models with a fast tokenizer can be served")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    special_tokens = {name: text for name in _SPECIAL_TOKENS if (text := _token_text(settings.get(name))) is not None}
    text_config = config.get("text_config", {})
    max_context = text_config.get("max_position_embeddings") or config.get("max_position_embeddings")
    if not isinstance(max_context, int):
        raise ModelFilesError(f"{folder / 'config.json'} does not say max_position_embeddings")
    return ModelFiles(
        tokenizer=tokenizer,
        chat_template=_chat_template(folder, settings),
        special_tokens=special_tokens,
        stop_token_ids=_stop_token_ids(folder, config, tokenizer, special_tokens),
        image_token_id=config.get("image_token_id"),
        max_context=max_context,
    )


def _folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    # Only here, and only for hub names: it is slow to import.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelFilesError(f"{path} is neither a folder nor a model that the hub has: {error}") from error


def _json(file: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not file.is_file():
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ModelFilesError(f"{file} cannot be read: {error}") from error


def _token_text(value: Any) -> str | None:
    """A special token is written as its text or as an object that has it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if template is None:
        # Where processors of before 2025 kept it.
        template = _json(folder / "chat_template.json", optional=True).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        raise ModelFilesError(f"{folder} holds no chat template")
    return template


def _stop_token_ids(
    folder: Path, config: dict[str, Any], tokenizer: Tokenizer, special_tokens: dict[str, str]
) -> tuple[int, ...]:
    generation = _json(folder / "generation_config.json", optional=True)
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    if ids is None:
        ids = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
    if ids is None:
        raise ModelFilesError(f"{folder} does not say which token ends an answer (eos_token_id)")
    return tuple(ids) if isinstance(ids, list) else (ids,)
