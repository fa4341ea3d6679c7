"""Whether the model's folder is whole: what every role would find out one after another, found at once."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from components.config import Topology
from components.doctor.finding import Finding

_CHANGE = "copy the folder again, to the same path on every node, or set model.path"
_HEADER_LIMIT = 100_000_000
"""Bytes: what the safetensors library itself refuses above."""


class _Broken(Exception):
    pass


def check_model(topology: Topology) -> Finding:
    """Config, tokenizer and the header of each weight file; the weights themselves are not read.

    A hub name is asked for at the hub, unless the hub's cache here has it.
    """
    folder = Path(topology.model.path)
    if not folder.is_dir():
        change = "name a folder in model.path that every node has"
        if problem := _hub_problem(topology.model.path):
            return Finding("model", "fail", f"{topology.model.path} is no folder here, and {problem}", change)
        says = f"{topology.model.path} is no folder here: each role would fetch it from the hub"
        return Finding("model", "warn", says, change)
    try:
        kind = _config(folder)
        words = _tokenizer(folder)
        tensors, size = _weights(folder)
    except _Broken as error:
        return Finding("model", "fail", f"{folder}: {error}", _CHANGE)
    says = f"{folder.name}: {kind}, {words:,} tokens, {tensors} tensors, {size / 2**20:,.0f} MiB of weights"
    return Finding("model", "ok", says, numbers={"bytes": size, "tensors": tensors})


def _hub_problem(name: str) -> str | None:
    """Why the roles could not have that model from the hub; its smallest file stands for all."""
    # Only here: slow to import, and most models are folders.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        snapshot_download(name, allow_patterns=["config.json"])
    except HFValidationError:
        return "no name of a model at the hub either"
    except RepositoryNotFoundError:
        return "the hub has no such model, or shows it only to those it knows (HF_TOKEN)"
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        return f"the hub does not give it: {str(error).strip().partition(chr(10))[0]}"
    return None


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _Broken(f"{path.name}: {error.strerror}") from error
    except ValueError as error:
        raise _Broken(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _Broken(f"{path.name} is no JSON object")
    return found


def _config(folder: Path) -> str:
    kind = _json(folder / "config.json").get("model_type")
    if not isinstance(kind, str):
        raise _Broken("config.json has no model_type")
    return kind


def _tokenizer(folder: Path) -> int:
    path = folder / "tokenizer.json"
    text = json.dumps(_json(path))
    try:
        return int(Tokenizer.from_str(text).get_vocab_size())
    except Exception as error:  # the library raises the bare class for whatever it cannot read
        raise _Broken(f"tokenizer.json: {error}") from error


def _weights(folder: Path) -> tuple[int, int]:
    """Number of tensors and bytes of all weight files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        mapping = _json(index).get("weight_map")
        if not isinstance(mapping, dict):
            raise _Broken(f"{index.name} has no weight_map")
        files = sorted({folder / str(name) for name in mapping.values()})
    else:
        files = [folder / "model.safetensors"]
    tensors, size = 0, 0
    for path in files:
        count, length = _safetensors(path)
        tensors, size = tensors + count, size + length
    return tensors, size


def _safetensors(path: Path) -> tuple[int, int]:
    """Format: 8 bytes little-endian length, that much JSON, then the data that its ``data_offsets`` point into.

    A download that broke off leaves a file that is shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < _HEADER_LIMIT:
                raise _Broken(f"{path.name} is no safetensors file")
            header = json.loads(file.read(length))
        size = path.stat().st_size
    except OSError as error:
        raise _Broken(f"{path.name}: {error.strerror}") from error
    except ValueError as error:
        raise _Broken(f"the header of {path.name} is damaged: {error}") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise _Broken(f"{path.name} has {size:,} bytes and should have {whole:,}: it was not copied to its end")
    return len(ends), size
