"""The tokens that a prompt calls for, without the adapter's help."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from tensorrt_llm import contract_model

from components.engines.transformers.positions import expand, mrope_positions
from components.engines.trtllm.model import Model
from tests.engines_trtllm.models import WIDTH


def expected(model: Model, token_ids: Sequence[int], pictures: Sequence[Image.Image], count: int) -> list[int]:
    """``token_ids`` have one placeholder a picture; the pictures' sides are multiples of 28 pixels."""
    sizes = [(picture.height // 28, picture.width // 28) for picture in pictures]
    counts = [rows * columns for rows, columns in sizes]
    dtype = getattr(torch, model.dtype)
    rows = [
        contract_model.embedding(picture.tobytes(), tokens, WIDTH, dtype)
        for picture, tokens in zip(pictures, counts, strict=True)
    ]
    ids = list(expand(token_ids, model.image_token_id, counts))
    positions, delta = None, 0
    if model.family.mrope:
        grids = [(1, 2 * height, 2 * width) for height, width in sizes]
        place, following = mrope_positions(ids, model.image_token_id, grids, 2)
        positions, delta = torch.from_numpy(place).to(torch.int32).unsqueeze(1), following - len(ids)
    else:
        ids = [model.vocabulary + 1 if token == model.image_token_id else token for token in ids]
    kv = contract_model.kv(ids, rows, positions)
    return [contract_model.token(kv, delta, index) for index in range(count)]
