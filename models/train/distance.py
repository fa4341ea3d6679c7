"""Signed distance maps of silhouettes, by brute force: small pictures, made once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distance_map(inside: Tensor, shrink: int = 1) -> Tensor:
    """Distance of each pixel to the silhouette's border, negative inside, as a share of half the side.

    inside: [s, s] bool. Returned at a `shrink` times smaller size, clipped to -1..1.
    """
    side = inside.shape[0]
    field = inside.float()
    # Border pixels: inside with a neighbour outside, and the other way round.
    grown = F.max_pool2d(field[None, None], 3, 1, 1)[0, 0]
    shrunk = -F.max_pool2d(-field[None, None], 3, 1, 1)[0, 0]
    own = (field > shrunk).nonzero().float()
    other = (grown > field).nonzero().float()
    if not len(own) or not len(other):
        return torch.full((side // shrink, side // shrink), 1.0 if not inside.any() else -1.0)
    points = (
        torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2).float()
    )
    to_other = torch.cdist(points, other).amin(1).reshape(side, side) - 0.5
    to_own = torch.cdist(points, own).amin(1).reshape(side, side) - 0.5
    signed = torch.where(inside, -to_other, to_own) / (side / 2)
    if shrink > 1:
        signed = F.avg_pool2d(signed[None, None], shrink)[0, 0]
    return signed.clamp(-1, 1)
