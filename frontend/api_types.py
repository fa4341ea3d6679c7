"""The OpenAI chat API, as far as it is served here.

msgspec and not pydantic: it decodes and checks a megabyte of JSON in 4 ms. Unknown fields are refused at every level.
``openapi.py`` makes the published schema from the same types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from components.protocol import FinishReason, Hop
from frontend import fields

_IGNORED: Any = None
_Ignored = Annotated[msgspec.Raw, Meta(description="Accepted, and has no effect.")]


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True):
    """``url`` is http(s) or ``data:…;base64,…``."""

    url: str
    detail: _Ignored = _IGNORED


class ImageUrlPart(msgspec.Struct, tag="image_url", tag_field="type", forbid_unknown_fields=True):
    image_url: ImageUrl
    cache_control: _Ignored = _IGNORED


class TextPart(msgspec.Struct, tag="text", tag_field="type", forbid_unknown_fields=True):
    text: str
    cache_control: _Ignored = _IGNORED


@fields.extended(fields.MESSAGE_SWITCHED_OFF, fields.MESSAGE_WITHOUT_EFFECT)
class ChatMessage(msgspec.Struct, kw_only=True):
    """``developer`` means ``system``. Pictures belong in ``user`` messages; only ``assistant`` may say nothing."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImageUrlPart] | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: _Ignored = _IGNORED


_Stop = Annotated[str, Meta(min_length=1, max_length=256)]
_Tokens = Annotated[int, Meta(ge=1, le=2**31)]


@fields.extended(fields.SWITCHED_OFF, fields.WITHOUT_EFFECT)
class ChatCompletionRequest(msgspec.Struct, kw_only=True):
    """Other fields than those listed are refused."""

    model: Annotated[str, Meta(max_length=512)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=4)] | None = None
    ignore_eos: Annotated[bool, Meta(description="Go on until max_tokens; for benchmarks.")] | None = None
    cache_salt: (
        Annotated[
            str, Meta(min_length=1, max_length=256, description="Share caches only with requests of the same salt.")
        ]
        | None
    ) = None
    trace: (
        Annotated[bool, Meta(description="Report the way the request took; also by `x-triptych-trace: 1`.")] | None
    ) = None


class AssistantMessage(msgspec.Struct, kw_only=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: str | None = None


class Choice(msgspec.Struct, kw_only=True):
    message: AssistantMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    image_tokens: int
    cached_tokens: int = 0


class CompletionUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TraceReport(msgspec.Struct, kw_only=True):
    """The way a request took, in order; ``start`` is on each panel's own clock."""

    id: str
    hops: list[Hop]


class ChatCompletion(msgspec.Struct, kw_only=True, omit_defaults=False):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    triptych: TraceReport | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, kw_only=True):
    delta: Delta
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: None = None


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """One ``data:`` event of a streamed answer; the last event is ``[DONE]``."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: CompletionUsage | msgspec.UnsetType | None = msgspec.UNSET
    triptych: TraceReport | msgspec.UnsetType = msgspec.UNSET


class Model(msgspec.Struct, kw_only=True):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "triptych"
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct, kw_only=True):
    data: list[Model]
    object: Literal["list"] = "list"


class Health(msgspec.Struct, kw_only=True):
    status: Literal["alive"] = "alive"


class Readiness(msgspec.Struct, kw_only=True):
    """``panels`` counts the instances of each panel."""

    panels: dict[str, int]
    ready: Literal[True] = True
