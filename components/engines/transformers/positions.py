"""Rotary positions of a prompt with pictures (M-RoPE), and the expansion of its placeholders.

Source: Qwen2-VL, arXiv 2409.12191, section 2.1: text moves time, height and width together; a picture's tokens keep
one time and walk its grid in height and width; what follows starts one after the largest position so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from components.engines.base import EngineError, Grid


def expand(token_ids: Sequence[int], image_token_id: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Repeat the i-th placeholder ``counts[i]`` times.

    Raises EngineError ``invalid_request`` when there are not as many placeholders as counts.
    """
    remaining = iter(counts)
    expanded: list[int] = []
    placeholders = sum(token == image_token_id for token in token_ids)
    if placeholders != len(counts):
        raise EngineError("invalid_request", f"{placeholders} image placeholders for {len(counts)} images")
    for token in token_ids:
        expanded.extend([token] * (next(remaining) if token == image_token_id else 1))
    return tuple(expanded)


def mrope_positions(
    token_ids: Sequence[int], image_token_id: int, grids: Sequence[Grid], merge: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Positions (3, n) in time, height and width of n expanded tokens, and the position that follows them."""
    ids = np.asarray(token_ids)
    positions = np.empty((3, len(ids)), np.int64)
    at, position = 0, 0
    for t, h, w in grids:
        image = at + int(np.argmax(ids[at:] == image_token_id))
        rows, columns = h // merge, w // merge
        positions[:, at:image] = np.arange(position, position + image - at)
        position += image - at
        at = image + t * rows * columns
        walk = np.stack(np.meshgrid(np.arange(t), np.arange(rows), np.arange(columns), indexing="ij"))
        positions[:, image:at] = position + walk.reshape(3, -1)
        position += max(t, rows, columns)
    positions[:, at:] = np.arange(position, position + len(ids) - at)
    return positions, position + len(ids) - at
