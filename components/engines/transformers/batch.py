"""The continuous batch: every running request takes one step together, whoever has come or gone since the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from components.engines.transformers.checkpoint import LanguageModel
from components.engines.transformers.kv import KVPool
from components.engines.transformers.sampling import Sampler, choose


@dataclass(eq=False)
class Running:
    """A request in the batch. ``slots`` (tokens,) maps its token i to the pool's row; ``length`` tokens have KV;
    ``drawn`` tokens of its answer are there."""

    slots: torch.Tensor
    length: int
    position: int
    token: int
    sampler: Sampler
    drawn: int = 1


class _DecodeCache:
    """Stands in for transformers' cache during one step: adds the new tokens' KV, returns each request's whole KV."""

    def __init__(self, pool: KVPool, write: torch.Tensor, read: torch.Tensor) -> None:
        self._pool, self._write, self._read = pool, write, read

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys, values: (batch, kv_heads, 1, head_dim) → (batch, kv_heads, longest, head_dim) with what came before."""
        whole = []
        for kv, new in enumerate((keys, values)):
            rows = self._pool.tensor[layer, kv]
            rows[self._write] = new[:, :, 0]
            whole.append(rows[self._read].transpose(1, 2))
        return whole[0], whole[1]


class Batch:
    """Takes one step at a time over the sequences given, and reads their KV through a table of pool rows."""

    def __init__(self, model: LanguageModel, pool: KVPool) -> None:
        self._model, self._pool = model, pool
        self._device = pool.tensor.device
        self._members: list[Running] = []
        self._table = torch.zeros(0, 0, dtype=torch.long)

    @torch.inference_mode()
    def step(self, sequences: Sequence[Running]) -> list[int]:
        """The next token of each sequence, in order; their state moves on by one token."""
        if self._members != list(sequences):
            # Both or none: a step that fails is taken again.
            self._table, self._members = self._make_table(sequences), list(sequences)
        lengths = torch.tensor([sequence.length for sequence in sequences])
        longest = int(lengths.max()) + 1
        ids = torch.tensor([[sequence.token] for sequence in sequences], device=self._device)
        positions = torch.tensor([[sequence.position] for sequence in sequences], device=self._device)
        write = self._table.gather(1, lengths[:, None].to(self._device))[:, 0]
        visible = torch.arange(longest)[None] <= lengths[:, None]
        hidden = self._model.language_model(
            input_ids=ids,
            position_ids=positions.expand(3, -1, -1),
            attention_mask={"full_attention": visible[:, None, None].to(self._device), "sliding_attention": None},
            past_key_values=_DecodeCache(self._pool, write, self._table[:, :longest]),
            use_cache=True,
        ).last_hidden_state
        logits = self._model.lm_head(hidden[:, 0])
        tokens = choose(logits, [s.sampler for s in sequences], [s.drawn for s in sequences])
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.token = token
            sequence.length += 1
            sequence.position += 1
            sequence.drawn += 1
        return tokens

    def _make_table(self, members: Sequence[Running]) -> torch.Tensor:
        # Padded with the sequence's own first row: it is masked, but a stranger's row might hold a NaN.
        width = max(len(sequence.slots) for sequence in members)
        rows = [
            torch.cat([sequence.slots, sequence.slots[:1].expand(width - len(sequence.slots))]) for sequence in members
        ]
        return torch.stack(rows).to(self._device)
