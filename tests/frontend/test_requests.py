"""What is wrong with a request is said with a 4xx that names the place; nothing a client sends is a 5xx."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.protocol import ChatRequest
from frontend.errors import ApiError
from frontend.fields import SWITCHED_OFF, WITHOUT_EFFECT
from frontend.limits import Limits
from frontend.payloads import lift
from frontend.validate import Chat, chat_request, parse
from tests.frontend.stack import MODEL, Stack
from tests.frontend.test_chat import body, part, user
from tests.media.pictures import encoded, picture

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = Limits(messages=100, parts=100, images=4, body_bytes=100_000)
JSON = {"content-type": "application/json"}
PNG = encoded(picture())
BASE64 = base64.b64encode(PNG).decode()


def parsed(request_body: Any) -> Chat:
    return parse(lift(json.dumps(request_body).encode(), LIMITS.body_bytes, LIMITS.strings), LIMITS)


def with_message(**message: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [message]}


def with_image(url: Any) -> dict[str, Any]:
    return body("Look:", {"type": "image_url", "image_url": {"url": url}})


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        ({}, ""),
        ([], ""),
        ("text", ""),
        (None, ""),
        ({"model": MODEL}, ""),
        ({"messages": [user("Hi")]}, ""),
        ({"model": 1, "messages": [user("Hi")]}, "model"),
        ({"model": MODEL, "messages": []}, "messages"),
        ({"model": MODEL, "messages": "Hi"}, "messages"),
        (with_message(role="user"), "messages.0.content"),
        (with_message(role="tool", content="x"), "messages.0.role"),
        (with_message(role="user", content=None), "messages.0.content"),
        (with_message(role="system"), "messages.0.content"),
        (with_message(role="user", content="x", prefix=True), "messages.0.prefix"),
        (with_message(role="user", content="x", weight=0), "messages.0.weight"),
        (with_message(role="user", content=[{"type": "text", "text": "x", "lang": "en"}]), "messages.0.content.0.lang"),
        (
            with_message(role="user", content=[{"type": "image_url", "image_url": {"url": "https://x/", "fps": 1}}]),
            "messages.0.content.0.image_url.fps",
        ),
        (with_message(role="user", content=[{"type": "input_audio"}]), "messages.0.content.0.type"),
        (with_message(role="user", content=[{"text": "x"}]), "messages.0.content.0"),
        (
            with_message(role="user", content=[{"type": "image_url", "image_url": "x"}]),
            "messages.0.content.0.image_url",
        ),
        (with_message(role="assistant", content="x", tool_calls=[{"id": "1"}]), "messages.0.tool_calls"),
        (with_message(role="system", content=[part(f"data:image/png;base64,{BASE64}")]), "messages.0.content.0"),
        (body("Hi", temperature=2.1), "temperature"),
        (body("Hi", temperature=-1), "temperature"),
        (body("Hi", temperature="warm"), "temperature"),
        (body("Hi", top_p=0), "top_p"),
        (body("Hi", top_p=1.1), "top_p"),
        (body("Hi", max_tokens=0), "max_tokens"),
        (body("Hi", max_tokens=-1), "max_tokens"),
        (body("Hi", max_tokens=1.5), "max_tokens"),
        (body("Hi", max_completion_tokens=2**40), "max_completion_tokens"),
        (body("Hi", seed=2**64), "seed"),
        (body("Hi", seed="x"), "seed"),
        (body("Hi", stop=""), "stop"),
        (body("Hi", stop=["a", "b", "c", "d", "e"]), "stop"),
        (body("Hi", stop=["a", 1]), "stop.1"),
        (body("Hi", stop="x" * 300), "stop"),
        (body("Hi", stream="yes"), "stream"),
        (body("Hi", stream_options={"include_usage": True}), "stream_options"),
        (body("Hi", stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (body("Hi", cache_salt=""), "cache_salt"),
        (body("Hi", cache_salt=7), "cache_salt"),
        (body("Hi", cache_salt="x" * 257), "cache_salt"),
        (body("Hi", n=2), "n"),
        (body("Hi", n=0), "n"),
        (body("Hi", tools=[{"type": "function"}]), "tools"),
        (body("Hi", tool_choice="required"), "tool_choice"),
        (body("Hi", response_format={"type": "json_object"}), "response_format"),
        (body("Hi", logprobs=True), "logprobs"),
        (body("Hi", top_logprobs=2), "top_logprobs"),
        (body("Hi", frequency_penalty=0.5), "frequency_penalty"),
        (body("Hi", presence_penalty=-1), "presence_penalty"),
        (body("Hi", logit_bias={"1": 5}), "logit_bias"),
        (body("Hi", top_k=40), "top_k"),
        (body("Hi", modalities=["text", "audio"]), "modalities"),
        (body("Hi", *[part("https://example.invalid/a.png")] * 5), "messages"),
        (with_image(5), "messages.0.content.1.image_url.url"),
        (with_image("ftp://example.invalid/a.png"), "messages.0.content.1"),
        (with_image("/etc/passwd"), "messages.0.content.1"),
        (with_image(""), "messages.0.content.1"),
    ],
)
async def test_wrong_fields_are_named(stack: Stack, request_body: Any, param: str) -> None:
    content = json.dumps(request_body).encode()
    response = await stack.http.post("/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    assert (error["param"] or "") == param
    assert stack.decoder.requests == []


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("data:image/png;base64,", "image_undecodable", "empty"),
        ("data:image/png;base64", "image_undecodable", "form"),
        ("data:", "image_undecodable", "form"),
        ("data:image/png,abc", "image_undecodable", "form"),
        ("data:image/svg+xml;utf8,<svg/>", "image_undecodable", "form"),
        (f"data:image/png;base64,{BASE64[:-1]}!", "image_undecodable", "base64"),
        (f"data:image/png;base64,{BASE64[:-3]}", "image_undecodable", "base64"),
        (f"data:image/png;base64,{BASE64[:8]}\\{BASE64[8:]}", "image_undecodable", "base64"),
        (f"data:image/png;base64,{BASE64[:8]}===={BASE64[8:]}", "image_undecodable", "base64"),
        ("data:image/png;base64,-_-_", "image_undecodable", "base64"),
        ("data:image/png;base64,ÄÄÄÄ", "image_undecodable", "base64"),
        ("data:image/png;base64,=", "image_undecodable", "base64"),
        ("data:image/png;base64,====", "image_undecodable", "base64"),
        ("data:image/png;base64,AA==AA==", "image_undecodable", "base64"),
    ],
)
async def test_data_urls_are_read_strictly(stack: Stack, url: str, code: str, words: str) -> None:
    response = await stack.http.post("/v1/chat/completions", json=with_image(url))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, "messages.0.content.1")
    assert words in error["message"]
    assert stack.decoder.requests == []


async def test_a_long_data_url_with_padding_in_its_middle(stack: Stack) -> None:
    half = base64.b64encode(bytes(2**18 * 3 // 4 - 1)).decode()  # Fills one step of the decoder, padding last.
    response = await stack.http.post("/v1/chat/completions", json=with_image(f"data:;base64,{half}{half}"))
    assert response.json()["error"]["code"] == "image_undecodable"


async def test_data_url_forms(stack: Stack) -> None:
    for head in (
        "data:image/png;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:;base64,",
        "data:image/png;charset=x;base64,",
        "data:image/png; base64,",
        "data:image/png;base64,\n",
    ):
        response = await stack.http.post("/v1/chat/completions", json=with_image(head + BASE64))
        assert response.status_code == 200, response.text
    assert stack.decoder.images == [PNG] * 6


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"not json",
        b"\xff\xfe",
        b'{"model":"' + MODEL.encode() + b'","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"model":"' + MODEL.encode() + b'","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"x":' + b"[" * 50_000,
        b'{"temperature":1e999}',
        b'{"a":NaN}',
    ],
)
async def test_what_is_not_json(stack: Stack, raw: bytes) -> None:
    response = await stack.http.post("/v1/chat/completions", content=raw, headers=JSON)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_request"


async def test_harmless_fields_are_accepted(stack: Stack) -> None:
    for name, values in SWITCHED_OFF.items():
        for value in (None, *values):
            response = await stack.http.post("/v1/chat/completions", json=body("Hi", **{name: value}))
            assert response.status_code == 200, response.text
    extra = {name: {"a": [1, "x"]} for name in WITHOUT_EFFECT} | {"frequency_penalty": 0.0}
    assert (await stack.http.post("/v1/chat/completions", json=body("Hi", **extra))).status_code == 200


# By the names that OpenAI, vLLM and SGLang give them, and one that nobody knows yet.
MEANING = {
    "structured_outputs": {"json": {"type": "object"}},
    "guided_json": {"type": "object"},
    "guided_regex": "[0-9]+",
    "guided_choice": ["yes", "no"],
    "guided_grammar": "root ::= x",
    "guided_decoding_backend": "x",
    "structural_tag": "x",
    "regex": "[0-9]+",
    "ebnf": "root ::= x",
    "stop_token_ids": [1],
    "stop_regex": "x",
    "use_beam_search": True,
    "best_of": 2,
    "continue_final_message": True,
    "add_generation_prompt": False,
    "add_special_tokens": True,
    "chat_template": "x",
    "chat_template_kwargs": {"enable_thinking": False},
    "documents": [{"text": "x"}],
    "truncate_prompt_tokens": 5,
    "mm_processor_kwargs": {"max_pixels": 1},
    "bad_words": ["Hello"],
    "allowed_token_ids": [5],
    "prompt_logprobs": 1,
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
    "length_penalty": 2.0,
    "echo": True,
    "logits_processors": ["x"],
    "custom_logit_processor": "x",
    "kv_transfer_params": {"a": 1},
    "lora_path": "x",
    "min_tokens": 3,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "include_stop_str_in_output": True,
    "no_stop_trim": True,
    "return_token_ids": True,
    "return_hidden_states": True,
    "priority": 1,
    "store": True,
    "vllm_xargs": {"a": 1},
    "a_field_of_next_year": 1,
}


@pytest.mark.parametrize("name", MEANING)
async def test_what_changes_the_meaning_of_an_answer_is_refused_by_name(stack: Stack, name: str) -> None:
    response = await stack.http.post("/v1/chat/completions", json=body("Hi", **{name: MEANING[name]}))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], name in error["message"]) == (name, True)
    assert stack.decoder.requests == []


async def test_the_published_schema_says_what_is_refused(stack: Stack) -> None:
    schemas = (await stack.http.get("/openapi.json")).json()["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]
    assert chat["additionalProperties"] is False
    assert chat["properties"]["top_k"]["enum"] == [None, 0, -1]
    assert set(SWITCHED_OFF) == {name for name, field in chat["properties"].items() if "enum" in field}
    assert schemas["ChatMessage"]["properties"]["tool_calls"]["enum"] == [None, []]


async def test_what_other_servers_put_into_answers_may_come_back(stack: Stack) -> None:
    said = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [], "function_call": None}
    messages = [
        user("Hi"),
        said,
        {"role": "assistant"},
        {"role": "assistant", "content": "x", "audio": None},
        user("?"),
    ]
    response = await stack.http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert response.status_code == 200, response.text
    prompt = stack.decoder.tokenizer.decode(list(stack.decoder.requests[0].token_ids), skip_special_tokens=False)
    assert prompt.count("<|im_start|>assistant\n<|im_end|>\n") == 2


async def test_a_salt_goes_on_to_the_processor() -> None:
    for salt, expected in ((None, ""), ("x" * 256, "x" * 256), ("é\0", "é\0")):
        request = chat_request(parsed(body("Hi", cache_salt=salt)).request, [])
        assert request.cache_salt == expected
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=ChatRequest) == request


async def test_unknown_model(stack: Stack) -> None:
    response = await stack.http.post("/v1/chat/completions", json=body("Hi") | {"model": "gpt-x"})
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "The model `gpt-x` does not exist.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_too_long_a_prompt(stack: Stack) -> None:
    response = await stack.http.post("/v1/chat/completions", json=body("1 2 3 4 " * 200))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_more_text_than_the_bus_carries(stack: Stack) -> None:
    response = await stack.http.post("/v1/chat/completions", json=body("word " * 300_000))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("megabytes", [5, 18])
async def test_a_body_over_the_limit(stack: Stack, chunked: bool, megabytes: int) -> None:
    """Announced or found out while it comes; a little too long or much."""

    async def pieces() -> Any:
        for _ in range(megabytes * 10):
            yield b" " * 100_000

    content = pieces() if chunked else b" " * (megabytes * 1_000_000)
    response = await stack.http.post("/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert (await stack.http.get("/health")).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_without_end(stack: Stack, chunked: bool) -> None:
    """The server stops reading; that it also tells why cannot be relied on any more."""

    async def pieces() -> Any:
        while True:
            yield b" " * 100_000

    headers = JSON if chunked else {**JSON, "content-length": "1000000000000"}
    try:
        response = await stack.http.post("/v1/chat/completions", content=pieces(), headers=headers)
    except httpx2.NetworkError:
        pass
    else:
        assert response.status_code == 413
    assert (await stack.http.get("/health")).status_code == 200


async def test_leaving_in_the_middle_of_a_body(stack: Stack) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.topology.frontend.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
    await reader.read()
    writer.close()
    assert (await stack.http.get("/health")).status_code == 200


async def test_other_routes(stack: Stack) -> None:
    missing = await stack.http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await stack.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert all("x-request-id" in each.headers for each in (missing, wrong))
    assert (await stack.http.get("/health")).json() == {"status": "alive"}
    ready = await stack.http.get("/ready")
    assert ready.json()["panels"] == {"processor": 1, "encode": 1, "prefill": 1, "decode": 1}


async def test_models(stack: Stack) -> None:
    listed = await stack.openai.models.list()
    assert [model.id for model in listed.data] == [MODEL]
    assert (await stack.openai.models.retrieve(MODEL)).id == MODEL
    response = await stack.http.get("/v1/models/some/other")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_metrics(stack: Stack) -> None:
    await stack.http.post("/v1/chat/completions", json=body("Hi"))
    await stack.http.post("/v1/chat/completions", json={})
    text = (await stack.http.get("/metrics")).text
    for line in (
        'triptych_http_requests_total{route="/v1/chat/completions",status="200"}',
        'triptych_http_requests_total{route="/v1/chat/completions",status="400"}',
        'triptych_http_errors_total{code="invalid_request"}',
        "triptych_time_to_first_token_seconds_count",
        "triptych_chats_in_flight 0.0",
        'triptych_tokens_total{kind="completion"}',
    ):
        assert line in text


async def test_description_of_the_api(stack: Stack) -> None:
    document = (await stack.http.get("/openapi.json")).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "404", "413", "415", "429", "500", "503", "504"} <= set(chat["responses"])
    schemas = document["components"]["schemas"]

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert "ChatCompletionRequest" in found and "ErrorBody" in found
    assert found <= set(schemas)
    assert {"model", "messages"} <= set(schemas["ChatCompletionRequest"]["required"])


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(
        ["user", "text", "image_url", MODEL, "data:image/png;base64,AAAA", "https://x.invalid/", "<|im_end|>"]
    ),
)
_json = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["type", "text", "image_url", "url", "role", "content", "messages", "x"]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)
_good_parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=20)),
    st.sampled_from([part(f"data:image/png;base64,{BASE64}"), part("https://example.invalid/a.png")]),
)
_messages = st.lists(
    st.one_of(
        _json,
        st.fixed_dictionaries(
            {
                "role": st.one_of(st.sampled_from(["system", "developer", "user", "assistant"]), _json),
                "content": st.one_of(
                    st.text(max_size=30), st.lists(st.one_of(_good_parts, _good_parts, _json), max_size=4)
                ),
            }
        ),
    ),
    max_size=4,
)
_fields = [*SWITCHED_OFF, "stream", "stream_options", "temperature", "top_p", "seed", "max_tokens"]
_fields += ["max_completion_tokens", "stop", "ignore_eos", "cache_salt", "trace", "user"]
_bodies = st.builds(
    lambda base, more: base | more,
    st.fixed_dictionaries({"model": st.one_of(st.just(MODEL), _json), "messages": st.one_of(_messages, _json)}),
    st.dictionaries(st.sampled_from(_fields), _json, max_size=3),
)


@settings(max_examples=400, deadline=None)
@given(_bodies)
async def test_any_body_is_accepted_or_refused_with_its_reason(request_body: Any) -> None:
    """The part that decides, alone, because it can do a thousand a second."""
    try:
        chat = parsed(request_body)
    except ApiError as error:
        assert error.status == 400
        return
    chat_request(chat.request, [None] * len(chat.images))  # type: ignore[list-item]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_bodies)
async def test_no_body_makes_a_server_error(stack: Stack, request_body: Any) -> None:
    response = await stack.http.post("/v1/chat/completions", json=request_body)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"] and error["type"] and error["code"]
    elif request_body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_no_bytes_make_a_server_error(stack: Stack, data: st.DataObject) -> None:
    raw = bytearray(json.dumps(body("Hi", part(f"data:image/png;base64,{BASE64}"), stop=["a"])).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    response = await stack.http.post("/v1/chat/completions", content=bytes(raw), headers=JSON)
    assert response.status_code < 500, response.text
