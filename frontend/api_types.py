"""The OpenAI chat API, as far as it is served here.

msgspec and not pydantic: a body is mostly base64, and msgspec reads and checks 20 MB of it in 15 ms.
``openapi.py`` makes the published schema from the same types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from components.protocol import FinishReason, Hop


class ImageUrl(msgspec.Struct):
    """``url`` is http(s) or ``data:…;base64,…``. ``detail`` is accepted and has no effect."""

    url: str
    detail: str | None = None


class ImageUrlPart(msgspec.Struct, tag="image_url", tag_field="type"):
    image_url: ImageUrl


class TextPart(msgspec.Struct, tag="text", tag_field="type"):
    text: str


Content = str | list[TextPart | ImageUrlPart]


class ChatMessage(msgspec.Struct, kw_only=True):
    """``developer`` means ``system``. Pictures belong in ``user`` messages."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    tool_calls: Annotated[Any, Meta(description="Not supported.")] = None
    function_call: Annotated[Any, Meta(description="Not supported.")] = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_Stop = Annotated[str, Meta(min_length=1, max_length=256)]
_Tokens = Annotated[int, Meta(ge=1, le=2**31)]
_Unsupported = Annotated[
    Any, Meta(description="Not supported: anything but the value that switches it off is refused.")
]


class ChatCompletionRequest(msgspec.Struct, kw_only=True):
    """Fields that are not listed are ignored."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=4)] | None = None
    n: int | None = None
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

    tools: _Unsupported = None
    tool_choice: _Unsupported = None
    functions: _Unsupported = None
    function_call: _Unsupported = None
    response_format: _Unsupported = None
    logprobs: _Unsupported = None
    top_logprobs: _Unsupported = None
    logit_bias: _Unsupported = None
    frequency_penalty: _Unsupported = None
    presence_penalty: _Unsupported = None
    repetition_penalty: _Unsupported = None
    top_k: _Unsupported = None
    min_p: _Unsupported = None
    min_tokens: _Unsupported = None
    audio: _Unsupported = None
    modalities: _Unsupported = None
    prediction: _Unsupported = None


SWITCHED_OFF: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
}
"""The values with which a client asks for nothing special; absent and null are always among them."""


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
