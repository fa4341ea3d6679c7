"""One request as both engines must see it: the prompt, the pictures, how to sample, where the two meet."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import torch

from components.engines.base import EngineError, Grid, ImageInfo
from components.protocol import Sampling

_ROOM_BYTES = 8
# SGLang's own probes name this address, and room 0: the engine computes, and no other engine takes part.
_NOBODY = "2.2.2.2"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What prefill tells decode. ``token_ids`` hold one placeholder a picture; ``grids`` say how many they become."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    token_ids: list[int]
    grids: list[Grid]
    content: Annotated[int, msgspec.Meta(ge=0)]
    cache_salt: str


def read_source(data: bytes) -> Source:
    try:
        return msgspec.msgpack.decode(data, type=Source)
    except msgspec.DecodeError as error:
        raise EngineError("transfer_failed", f"KV source is not SGLang's: {error}") from error


def new_room() -> int:
    # Not 0: SGLang's decode reads that as "no answer yet" and waits for ever.
    return 1 + secrets.randbelow(2**62)


def write_room(room: int) -> bytes:
    return room.to_bytes(_ROOM_BYTES, "big")


def read_room(target: bytes) -> int:
    room = int.from_bytes(target, "big")
    if len(target) != _ROOM_BYTES or room < 1:
        raise EngineError("transfer_failed", "KV target is no room of SGLang's")
    return room


def rows(grid: Grid, merge: int) -> int:
    t, h, w = grid
    return t * h * w // merge**2


def content(revision: str, images: Sequence[ImageInfo]) -> int:
    """64 bits that stand for the pictures in SGLang's prefix cache, which trusts them: another picture, order or model
    must give another number."""
    digest = hashlib.sha256(revision.encode())
    for image in images:
        digest.update(f"/{image.content_hash}".encode())
    return int.from_bytes(digest.digest()[:8], "big")


def image_data(embedding: torch.Tensor, grids: Sequence[Grid], content: int) -> list[dict[str, Any]]:
    """All pictures of a prompt as the one item that SGLang takes; ``embedding`` (rows, width) in prompt order."""
    return [
        {
            "format": "processor_output",
            "modality": "IMAGE",
            "precomputed_embeddings": embedding,
            "image_grid_thw": torch.tensor(grids, dtype=torch.long),
            "hash": content,
        }
    ]


def stub(grids: Sequence[Grid], content: int) -> list[dict[str, Any]]:
    """What decode is given of the pictures: no rows, but the grids. Without them its rotary positions, and so every
    token from the second on, are wrong, and nothing says so."""
    return image_data(torch.zeros(1, 1), grids, content)


def probe(image_token_id: int, merge: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """A request that touches everything a real one does, for an engine to warm up with; ``width`` of an embedding."""
    grid = (1, 2 * merge, 2 * merge)
    count = rows(grid, merge)
    images = image_data(torch.zeros(count, width, dtype=dtype), [grid], 0)
    token_ids = [0] * 8 + [image_token_id] * count + [0] * 4
    return request(token_ids, Sampling(max_tokens=1, ignore_eos=True), images, "", _NOBODY, 1, 0)


def request(
    token_ids: Sequence[int],
    sampling: Sampling,
    images: list[dict[str, Any]] | None,
    cache_salt: str,
    host: str,
    port: int,
    room: int,
) -> dict[str, Any]:
    """Fields of SGLang's ``GenerateReqInput``; ``token_ids`` expanded."""
    return {
        "input_ids": list(token_ids),
        "sampling_params": {
            "max_new_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "sampling_seed": sampling.seed,
            "stop_token_ids": list(sampling.stop_token_ids),
            "ignore_eos": sampling.ignore_eos,
        },
        "image_data": images,
        "extra_key": cache_salt or None,
        "bootstrap_host": host,
        "bootstrap_port": port,
        "bootstrap_room": room,
    }
