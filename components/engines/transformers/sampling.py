"""Logits to tokens, with transformers' own warpers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from components.engines.base import EngineError
from components.protocol import Sampling


class Sampler:
    """One request's choice of tokens. The n-th token depends on the seed, n and the logits alone, so the first token
    (drawn by prefill) and the rest (drawn by decode, in whatever batch) repeat with the seed."""

    def __init__(self, sampling: Sampling) -> None:
        self.greedy = sampling.temperature == 0.0
        self._seed = sampling.seed
        self._warpers = LogitsProcessorList()
        if not self.greedy:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_p < 1.0:
                self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def draw(self, logits: torch.Tensor, step: int) -> int:
        """Token number ``step`` of the answer from ``logits`` (vocabulary,)."""
        ids = torch.LongTensor(1, 0)
        probabilities = torch.softmax(self._warpers(ids, logits[None].float()), dim=-1)[0].cpu()
        # A generator a token: neither batch mates nor a move to another worker can shift the draw.
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF)
        return int(torch.multinomial(probabilities, 1, generator=generator))


def choose(logits: torch.Tensor, samplers: Sequence[Sampler], steps: Sequence[int]) -> list[int]:
    """One token a row of ``logits`` (rows, vocabulary). Raises EngineError when a row of them is no choice at all."""
    if not logits.amax(dim=-1).isfinite().all():
        # NaN would win every comparison: a token as good as any, and nobody would know.
        raise EngineError("internal", "the model's logits are not finite numbers")
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, (sampler, step) in enumerate(zip(samplers, steps, strict=True)):
        if not sampler.greedy:
            tokens[row] = sampler.draw(logits[row], step)
    return tokens
