"""The fields that are known and not honoured: which values of them a client may send all the same.

A field that would change the meaning of an answer is refused by name, whether it is listed here or not: what is not
listed is unknown, and could mean anything. Listed are those that clients send without wanting anything by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta, Raw

from frontend.errors import invalid

T = TypeVar("T", bound=msgspec.Struct)

SWITCHED_OFF: dict[str, tuple[Any, ...]] = {
    # OpenAI's
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
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "store": (False,),
    # vLLM's and SGLang's
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "custom_logit_processor": (),
    "custom_params": ({},),
    "data_parallel_rank": (),
    "documents": ([],),
    "ebnf": (),
    "echo": (False,),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": (),
    "min_p": (0,),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "no_stop_trim": (False,),
    "priority": (0,),
    "prompt_logprobs": (0,),
    "regex": (),
    "repetition_penalty": (1,),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "separate_reasoning": (True,),
    "session_params": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ([],),
    "stop_token_ids": ([],),
    "stream_reasoning": (True,),
    "structural_tag": (),
    "structured_outputs": (),
    "top_k": (0, -1),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
"""Of a request: the values with which a client asks for nothing special; absent and null are always among them."""

WITHOUT_EFFECT = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
)
"""Of a request: notes for whoever runs the server, and what only says something about fields that are not set."""

MESSAGE_SWITCHED_OFF: dict[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "prefix": (False,),
    "partial": (False,),
}
"""Of a message."""

MESSAGE_WITHOUT_EFFECT = (
    "annotations",
    "cache_control",
    "id",
    "name",
    "provider_specific_fields",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "refusal",
    "thinking_blocks",
)
"""Of a message: what other servers put into answers, which come back as part of the conversation."""

_LONGEST = 64
"""Bytes of JSON; no value in the lists above is longer."""


def extended(
    switched_off: Mapping[str, tuple[Any, ...]], without_effect: Sequence[str]
) -> Callable[[type[T]], type[T]]:
    """Adds these fields to a type, which then refuses all others. Their values stay JSON: they may be large, and nobody
    reads them.
    """
    off = [(name, Annotated[Raw, Meta(extra_json_schema=_only(values))], None) for name, values in switched_off.items()]
    ignored = Annotated[Raw, Meta(description="Accepted, and has no effect.")]
    fields = [*off, *((name, ignored, None) for name in without_effect)]

    def add(base: type[T]) -> type[T]:
        made = msgspec.defstruct(
            base.__name__,
            fields,
            bases=(base,),
            module=base.__module__,
            namespace={"__doc__": base.__doc__},
            kw_only=True,
            forbid_unknown_fields=True,
        )
        return cast(type[T], made)

    return add


def _only(values: tuple[Any, ...]) -> dict[str, Any]:
    return {"description": "Not supported: only what switches it off is accepted.", "enum": [None, *values]}


def check(given: msgspec.Struct, switched_off: Mapping[str, tuple[Any, ...]], place: str = "") -> None:
    """Raises ``ApiError`` 400, naming the field, if one of these asks for something."""
    for name, harmless in switched_off.items():
        value: Raw | None = getattr(given, name)
        if value is not None and not _is_one_of(value, harmless):
            raise invalid(f"`{name}` is not supported.", f"{place}{name}")


def _is_one_of(raw: Raw, values: tuple[Any, ...]) -> bool:
    if len(bytes(raw)) > _LONGEST:
        return False
    value = msgspec.json.decode(raw)
    # 1 == True in Python, but 1 == 1.0 is meant.
    return value is None or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)
