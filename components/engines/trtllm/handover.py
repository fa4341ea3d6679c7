"""What a prefill engine hands to the decode engine, on the wire: all that decode needs to fetch the KV and go on."""

from __future__ import annotations

from typing import Any

import msgspec

from components.engines.base import EngineError, Grid


class Handover(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``token_ids`` are the prompt as TensorRT-LLM has it, which may write pictures with ids beyond the vocabulary.

    The rest are fields of ``DisaggregatedParams``: ``opaque_state`` says where the KV lies (base64 in JSON); those that
    the release lacks are None. Handles are not among them: they are worth nothing on another machine.
    """

    token_ids: tuple[int, ...]
    grids: tuple[Grid, ...]
    cache_salt: str
    first_gen_tokens: tuple[int, ...]
    opaque_state: bytes
    disagg_request_id: int
    ctx_request_id: int | None = None
    draft_tokens: tuple[int, ...] | None = None
    ctx_dp_rank: int | None = None
    ctx_info_endpoint: str | tuple[str, ...] | None = None

    @classmethod
    def of(cls, params: Any, *, request_id: int, token_ids: list[int], grids: list[Grid], cache_salt: str) -> Handover:
        """From the ``DisaggregatedParams`` of a finished context that ``request_id`` names across workers.

        Raises EngineError when they say nothing of the KV.
        """
        if params is None or params.opaque_state is None or not params.first_gen_tokens:
            raise EngineError("internal", "TensorRT-LLM computed the prompt but does not say where its KV is")
        draft, endpoint = params.draft_tokens, getattr(params, "ctx_info_endpoint", None)
        return cls(
            token_ids=tuple(token_ids),
            grids=tuple(grids),
            cache_salt=cache_salt,
            first_gen_tokens=tuple(params.first_gen_tokens),
            opaque_state=params.opaque_state,
            ctx_request_id=params.ctx_request_id,
            disagg_request_id=request_id,
            draft_tokens=None if draft is None else tuple(draft),
            ctx_dp_rank=getattr(params, "ctx_dp_rank", None),
            ctx_info_endpoint=tuple(endpoint) if isinstance(endpoint, list) else endpoint,
        )

    @classmethod
    def from_wire(cls, data: bytes) -> Handover:
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise EngineError("invalid_request", f"prefill's handover is not one of TensorRT-LLM: {error}") from error

    def to_wire(self) -> bytes:
        return msgspec.json.encode(self)

    def params(self) -> dict[str, Any]:
        """The fields of ``DisaggregatedParams`` that are known of the context."""
        endpoint = self.ctx_info_endpoint
        values: dict[str, Any] = {
            "first_gen_tokens": list(self.first_gen_tokens),
            "opaque_state": self.opaque_state,
            "ctx_request_id": self.ctx_request_id,
            "disagg_request_id": self.disagg_request_id,
            "draft_tokens": None if self.draft_tokens is None else list(self.draft_tokens),
            "ctx_dp_rank": self.ctx_dp_rank,
            "ctx_info_endpoint": list(endpoint) if isinstance(endpoint, tuple) else endpoint,
        }
        return {name: value for name, value in values.items() if value is not None}
