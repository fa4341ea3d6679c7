from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, kw_only=True)
class DisaggregatedParams:
    request_type: str | None = None
    first_gen_tokens: list[int] | None = None
    ctx_request_id: int | None = None
    opaque_state: bytes | None = None
    draft_tokens: list[int] | None = None
    disagg_request_id: int | None = None
    ctx_dp_rank: int | None = None
    ctx_info_endpoint: str | list[str] | None = None
    multimodal_embedding_handles: list[dict[str, Any]] | None = None
    multimodal_hashes: list[list[int]] | None = None
    mrope_position_ids_handle: dict[str, Any] | None = None
    mrope_position_deltas_handle: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.request_type not in (None, "context_only", "generation_only", "context_and_generation"):
            raise ValueError(f"Unknown request type: {self.request_type}")
        if self.multimodal_embedding_handles is not None:
            # The real one makes hashes up, and then no KV is ever used again; ours must bring them.
            assert self.multimodal_hashes is not None
            assert len(self.multimodal_hashes) == len(self.multimodal_embedding_handles)
            for item in self.multimodal_hashes:
                assert isinstance(item, list) and len(item) == 8
                assert all(isinstance(number, int) and -(2**31) <= number < 2**31 for number in item)
