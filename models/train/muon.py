"""Muon for matrices, Adam for the rest: twice as quick per step as Adam alone on small transformers.

Muon (Keller Jordan, 2024) replaces the momentum of a weight matrix by the nearest orthogonal matrix, found by a few
Newton-Schulz steps. Matrices of one shape are stacked and handled together, or the many small products would cost more
time than the step itself.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of g = U S V^T. g: [stack, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if wide else x


class Optimizer:
    """Muon for the blocks' matrices, Adam for embedding, patch projection, norms and biases.

    rates are peaks; `step(scale)` takes the schedule's share of them.
    """

    def __init__(
        self, named: list[tuple[str, Tensor]], muon_rate: float = 0.02, adam_rate: float = 2e-3, decay: float = 0.01
    ) -> None:
        self.muon_rate, self.adam_rate, self.decay = muon_rate, adam_rate, decay
        self.groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        rest = []
        for name, parameter in named:
            matrix = parameter.dim() == 2 and "embed" not in name
            self.groups[tuple(parameter.shape)].append(parameter) if matrix else rest.append(parameter)
        self.momentum = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self.groups.items()
        }
        self.adam = torch.optim.AdamW(
            rest, lr=adam_rate, betas=(0.9, 0.97), eps=1e-8, weight_decay=0.0, fused=rest[0].is_cuda
        )

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * scale
        self.adam.step()
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group])
            momentum = self.momentum[shape]
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95))
            rate = self.muon_rate * scale * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(group, 1 - self.muon_rate * scale * self.decay)
            torch._foreach_add_(group, list(update.float().unbind(0)), alpha=-rate)

    def state_dict(self) -> dict:
        return {"adam": self.adam.state_dict(), "momentum": list(self.momentum.values())}

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        for mine, saved in zip(self.momentum.values(), state["momentum"], strict=True):
            mine.copy_(saved)
