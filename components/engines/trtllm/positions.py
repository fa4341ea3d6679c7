"""Rotary positions of a prompt with pictures, as TensorRT-LLM takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from components.engines.base import Grid
from components.engines.transformers.positions import mrope_positions
from components.engines.trtllm.model import Model
from components.engines.trtllm.shared import Handle, Sharing


def mrope_handles(
    model: Model, token_ids: Sequence[int], grids: Sequence[Grid], sharing: Sharing
) -> tuple[dict[str, Handle], int]:
    """Fields of ``DisaggregatedParams``, and the position that follows the prompt.

    ``token_ids`` are expanded; a picture's may be ids beyond the vocabulary, which is how some releases write it. The
    positions are (3, 1, n), the delta, (1, 1), is what they lag behind the count of tokens; both int32.
    """
    ids = [model.image_token_id if token >= model.vocabulary else token for token in token_ids]
    positions, following = mrope_positions(ids, model.image_token_id, grids, model.merge)
    delta = following - len(ids)
    handles = {
        "mrope_position_ids_handle": sharing.give(torch.from_numpy(positions).to(torch.int32).unsqueeze(1)),
        "mrope_position_deltas_handle": sharing.give(torch.tensor([[delta]], dtype=torch.int32)),
    }
    return handles, following
