from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, RateLimitError

from components.messaging import CallError, Context
from components.protocol import GenerateDone, GenerateItem, GenerateRequest, Started, Tokens, Usage
from tests.frontend.stack import MODEL, Stack, answers
from tests.media.pictures import encoded, picture
from tests.servers import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": each} if isinstance(each, str) else each for each in content]
    return {"role": "user", "content": parts}


def body(*content: Any, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [user(*content)], **more}


def events(text: str) -> list[Any]:
    """The events of a stream; the last is the string ``[DONE]``."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_official_client(stack: Stack) -> None:
    answer = await stack.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "How many stars?"}], temperature=0
    )
    assert answer.choices[0].message.content == "There are three."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len(stack.decoder.tokenizer.encode("There are three.").ids)
    assert stack.decoder.requests[0].sampling.temperature == 0.0


async def test_official_client_streaming(stack: Stack) -> None:
    stack.decoder.answer = "Grüße 你好 👍🏽!"
    chunks = [
        chunk
        async for chunk in await stack.openai.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Grüße 你好 👍🏽!"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


async def test_chunks_on_the_wire(stack: Stack) -> None:
    response = await stack.http.post("/v1/chat/completions", json=body("Hi", stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, last = events(response.text)
    assert last == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}
    for chunk in chunks:
        assert (chunk["object"], chunk["model"], chunk["id"]) == ("chat.completion.chunk", MODEL, chunks[0]["id"])
        assert "usage" not in chunk and "triptych" not in chunk


async def test_pictures_arrive_by_nixl_and_urls_as_urls(stack: Stack) -> None:
    small = encoded(picture())
    large = encoded(picture(), "BMP") + np.random.default_rng(0).bytes(1_000_001)
    url = "https://example.invalid/a.png"
    content = ["Compare", part(data_url(small)), part(url), part(data_url(large)), "?"]
    answer = (await stack.http.post("/v1/chat/completions", json=body(*content))).json()
    assert stack.decoder.images == [small, url, large]
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 24
    request = stack.decoder.requests[0]
    assert (
        sum(len(image.record) for image in request.images if not isinstance(image, str) and hasattr(image, "record"))
        < 4000
    )
    assert request.token_ids.count(stack.decoder.tokenizer.token_to_id("<|image_pad|>")) == 3


async def test_conversation_reaches_the_model_in_order(stack: Stack) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        user(part("http://example.invalid/1.png"), "What?"),
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Sure?", "name": "Ann"},
    ]
    response = await stack.http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert response.status_code == 200
    assert stack.decoder.tokenizer.decode(list(stack.decoder.requests[0].token_ids), skip_special_tokens=False) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_sampling_parameters(stack: Stack) -> None:
    async def sampled(**parameters: Any) -> Any:
        response = await stack.http.post("/v1/chat/completions", json=body("Hi", **parameters))
        assert response.status_code == 200, response.text
        return stack.decoder.requests[-1].sampling

    plain = await sampled()
    assert (plain.temperature, plain.top_p, plain.ignore_eos) == (1.0, 1.0, False)
    end = stack.decoder.tokenizer.token_to_id("<|im_end|>")
    assert end in plain.stop_token_ids
    assert plain.seed != (await sampled()).seed
    assert plain.max_tokens <= 512 - len(stack.decoder.requests[-1].token_ids)
    chosen = await sampled(temperature=0.5, top_p=0.9, seed=-3, max_tokens=5, ignore_eos=True)
    assert (chosen.temperature, chosen.top_p, chosen.seed, chosen.max_tokens) == (0.5, 0.9, -3, 5)
    assert chosen.ignore_eos
    assert (await sampled(max_tokens=5, max_completion_tokens=6)).max_tokens == 6
    room = 512 - len(stack.decoder.requests[-1].token_ids)
    assert (await sampled(max_tokens=room)).max_tokens == room
    over = await stack.http.post("/v1/chat/completions", json=body("Hi", max_tokens=room + 1))
    assert (over.status_code, over.json()["error"]["code"]) == (400, "context_length_exceeded")
    too_many = await stack.http.post("/v1/chat/completions", json=body("Hi", max_tokens=513))
    error = too_many.json()["error"]
    assert (too_many.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "max_tokens")
    assert error["message"].startswith("This model's maximum context length is 512 tokens. However, you requested 513")


async def test_length_is_the_finish_reason(stack: Stack) -> None:
    answer = (await stack.http.post("/v1/chat/completions", json=body("Hi", max_completion_tokens=2))).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_cut_the_answer_and_end_the_work(stack: Stack, stream: bool) -> None:
    async def forever(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=40, image_tokens=10)
        for id in stack.decoder.tokenizer.encode("one two three").ids:
            yield Tokens(ids=(id,))
        await asyncio.Event().wait()

    stack.decoder.script = forever
    chat = body("Count", stream=stream, stop=["never", "o thr"])
    response = await stack.http.post(
        "/v1/chat/completions", json=chat | ({"stream_options": {"include_usage": True}} if stream else {})
    )
    if stream:
        *chunks, _ = events(response.text)
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        usage, reason = chunks[-1]["usage"], chunks[-2]["choices"][0]["finish_reason"]
    else:
        answer = response.json()
        text, reason = answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]
        usage = answer["usage"]
    assert (text, reason) == ("one tw", "stop")
    assert usage["prompt_tokens"] == 40 and usage["prompt_tokens_details"]["image_tokens"] == 10
    assert usage["completion_tokens"] > 0
    await until(lambda: stack.decoder.running == 0)


async def test_a_stop_string_given_as_text(stack: Stack) -> None:
    answer = (await stack.http.post("/v1/chat/completions", json=body("Hi", stop=" three"))).json()
    assert answer["choices"][0]["message"]["content"] == "There are"


@pytest.mark.parametrize("how", ["field", "header"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_way_a_request_took(stack: Stack, how: str, stream: bool) -> None:
    chat = body("Hi", part(data_url(encoded(picture()))), stream=stream)
    headers = {"x-request-id": "my-request"}
    if how == "field":
        chat["trace"] = True
    else:
        headers["x-triptych-trace"] = "1"
    response = await stack.http.post("/v1/chat/completions", json=chat, headers=headers)
    answer = events(response.text)[-2] if stream else response.json()
    report = answer["triptych"]
    assert report["id"] == "my-request"
    steps = [(hop["stage"], hop["name"]) for hop in report["hops"]]
    for step in (
        ("frontend", "validate"),
        ("frontend", "expose image"),
        ("processor", "tokenize"),
        ("prefill", "compute"),
        ("frontend", "first text"),
        ("frontend", "total"),
    ):
        assert step in steps
    assert set(report["hops"][0]) == {"stage", "name", "start", "milliseconds", "bytes", "lane"}
    first, total = (next(hop for hop in report["hops"] if hop["name"] == name) for name in ("first text", "total"))
    assert first["start"] == pytest.approx(total["start"], abs=2e-3), "both begin with the request"


async def test_nothing_is_reported_unasked(stack: Stack) -> None:
    assert "triptych" not in (await stack.http.post("/v1/chat/completions", json=body("Hi"))).json()


async def test_request_id_and_trace_context_travel(stack: Stack) -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    headers = {"x-request-id": "abc.DEF-1", "traceparent": parent}
    response = await stack.http.post("/v1/chat/completions", json=body("Hi"), headers=headers)
    assert response.headers["x-request-id"] == "abc.DEF-1"
    assert stack.decoder.contexts[-1].id == "abc.DEF-1"
    assert stack.decoder.contexts[-1].traceparent.split("-")[1] == "ab" * 16
    for bad in ("a b", "x" * 200, "ä"):
        headers = {"x-request-id": bad, "traceparent": bad}
        response = await stack.http.post(
            "/v1/chat/completions", json=body("Hi"), headers=[(k.encode(), v.encode()) for k, v in headers.items()]
        )
        assert response.status_code == 200
        assert response.headers["x-request-id"] != bad


async def test_a_client_that_hangs_up_frees_everything(stack: Stack) -> None:
    async def forever(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        while True:
            yield Tokens(ids=tuple(stack.decoder.tokenizer.encode(" one").ids))
            await asyncio.sleep(0.001)

    stack.decoder.script = forever
    chat = body("Go on", part(data_url(encoded(picture()))), stream=True)
    async with stack.http.stream("POST", "/v1/chat/completions", json=chat) as response:
        async for line in response.aiter_lines():
            if "one" in line:
                break
        assert stack.decoder.running == 1
    await stack.idle()
    assert stack.decoder.closed == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_before_the_first_token(stack: Stack, stream: bool) -> None:
    async def never(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        await asyncio.Event().wait()
        yield Started(prompt_tokens=1)

    stack.decoder.script = never
    chat = body("Hi", part(data_url(encoded(picture()))), stream=stream)
    task = asyncio.create_task(stack.http.post("/v1/chat/completions", json=chat))
    await until(lambda: stack.decoder.running == 1)
    assert stack.connector.counters().leases == 1
    assert stack.connector.counters().pool_used_bytes > 0
    task.cancel()
    await stack.idle()


async def test_pictures_stay_until_the_answer_ends(stack: Stack) -> None:
    """Another worker may have to read them again."""
    release = asyncio.Event()

    async def slow(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        yield Tokens(ids=tuple(stack.decoder.tokenizer.encode("one").ids))
        await release.wait()
        yield GenerateDone(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))

    stack.decoder.script = slow
    chat = body("Hi", part(data_url(encoded(picture()))))
    task = asyncio.create_task(stack.http.post("/v1/chat/completions", json=chat))
    await until(lambda: stack.decoder.running == 1)
    assert stack.connector.counters().pool_used_bytes > 0
    release.set()
    assert (await task).status_code == 200
    await until(lambda: stack.connector.counters().pool_used_bytes == 0)


async def test_an_answer_whose_worker_dies_is_continued(stack: Stack) -> None:
    """The next worker is told the answer so far; the client sees one answer and its true cost."""
    ids = tuple(stack.decoder.tokenizer.encode("one two three four").ids)
    half = len(ids) // 2

    async def dying(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=len(request.token_ids) + 7, image_tokens=8)
        if not request.sampling.drawn:
            yield Tokens(ids=ids[:half])
            raise CallError("peer_lost", "gone", stage="decode", retryable=True)
        yield Tokens(ids=ids[half:])
        usage = Usage(prompt_tokens=len(request.token_ids) + 7, completion_tokens=len(ids) - half, image_tokens=8)
        yield GenerateDone(finish_reason="stop", usage=usage)

    stack.decoder.script = dying
    chat = body("Hi", part(data_url(encoded(picture())))) | {"max_tokens": 64}
    answer = (await stack.http.post("/v1/chat/completions", json=chat)).json()
    assert answer["choices"][0]["message"]["content"] == stack.decoder.tokenizer.decode(ids)
    first, second = stack.decoder.requests
    assert second.token_ids == first.token_ids + ids[:half]
    assert (second.sampling.drawn, second.sampling.max_tokens) == (half, 64 - half)
    assert answer["usage"]["prompt_tokens"] == len(first.token_ids) + 7
    assert answer["usage"]["completion_tokens"] == len(ids)


async def test_a_request_that_kills_every_worker_ends(stack: Stack) -> None:
    async def deadly(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=3)
        yield Tokens(ids=tuple(stack.decoder.tokenizer.encode("one").ids))
        raise CallError("peer_lost", "gone", stage="decode", retryable=True)

    stack.decoder.script = deadly
    response = await stack.http.post("/v1/chat/completions", json=body("Hi") | {"max_tokens": 64})
    assert response.status_code == 503
    assert len(stack.decoder.requests) == 4


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("context_length_exceeded", 400),
        ("image_undecodable", 400),
        ("image_too_large", 400),
        ("image_unreachable", 400),
        ("overloaded", 429),
        ("unavailable", 503),
        ("peer_lost", 503),
        ("transfer_failed", 503),
        ("deadline_exceeded", 504),
        ("internal", 500),
        ("a code from the future", 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token_are_a_status(stack: Stack, code: str, status: int, stream: bool) -> None:
    async def fail(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        raise CallError(code, "what happened", stage="prefill")

    stack.decoder.script = fail
    response = await stack.http.post("/v1/chat/completions", json=body("Hi", stream=stream))
    assert response.status_code == status
    error = response.json()["error"]
    if status == 500:
        assert "what happened" not in error["message"] and response.headers["x-request-id"] in error["message"]
    else:
        assert (error["code"], error["message"]) == (code, "what happened")
    assert error["type"] == {429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_an_error_after_the_first_token_is_an_event(stack: Stack) -> None:
    async def fail(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        yield Tokens(ids=tuple(stack.decoder.tokenizer.encode("one").ids))
        raise CallError("peer_lost", "the decode worker has gone", stage="decode")

    stack.decoder.script = fail
    response = await stack.http.post("/v1/chat/completions", json=body("Hi", stream=True))
    assert response.status_code == 200
    *_, text, error, done = events(response.text)
    assert text["choices"][0]["delta"]["content"] == "one"
    assert error["error"]["code"] == "peer_lost"
    assert done == "[DONE]"
    response = await stack.http.post("/v1/chat/completions", json=body("Hi"))
    assert response.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_text_held_back_to_the_end(stack: Stack, stream: bool) -> None:
    """A cut character and the beginning of a stop string, both in the same piece as certain text."""

    async def cut(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        vocabulary = stack.decoder.tokenizer.get_vocab()
        yield Started(prompt_tokens=1)
        yield Tokens(ids=(*stack.decoder.tokenizer.encode("one tw").ids, vocabulary["â"]))
        yield GenerateDone(finish_reason="length", usage=Usage(prompt_tokens=1, completion_tokens=3))

    stack.decoder.script = cut
    response = await stack.http.post("/v1/chat/completions", json=body("Hi", stream=stream, stop="two"))
    assert response.status_code == 200
    if stream:
        *chunks, end, done = events(response.text)
        text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
        assert (end["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    else:
        text = response.json()["choices"][0]["message"]["content"]
    assert text == "one tw\ufffd"


async def test_a_bug_in_the_middle_of_a_stream_is_told_too(stack: Stack) -> None:
    with patch("frontend.sse.ChunkWriter.finish", side_effect=ValueError("secret")):
        response = await stack.http.post("/v1/chat/completions", json=body("Hi", stream=True))
    *_, error, done = events(response.text)
    assert (error["error"]["code"], error["error"]["type"], done) == ("internal", "server_error", "[DONE]")
    assert "secret" not in error["error"]["message"]


async def test_a_bug_before_the_first_byte(stack: Stack) -> None:
    with patch("frontend.chat.chat_request", side_effect=ValueError("secret")):
        response = await stack.http.post("/v1/chat/completions", json=body("Hi"))
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal" and response.headers["x-request-id"] in error["message"]
    assert "secret" not in response.text


async def test_which_picture_was_wrong(stack: Stack) -> None:
    async def fail(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        param = "images.1" if len(request.images) > 1 else None
        yield Started(prompt_tokens=1)
        raise CallError("image_unreachable", "not there", param=param)

    stack.decoder.script = fail
    image = part("https://example.invalid/")
    for content, place in (([image, "x", image], "messages.0.content.2"), (["x", image], "messages.0.content.1")):
        response = await stack.http.post("/v1/chat/completions", json=body(*content))
        assert (response.status_code, response.json()["error"]["param"]) == (400, place)


async def test_official_client_sees_typed_errors(stack: Stack) -> None:
    with pytest.raises(NotFoundError) as missing:
        await stack.openai.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "`other`" in missing.value.message
    with pytest.raises(BadRequestError) as wrong:
        await stack.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], n=2)
    assert wrong.value.param == "n"

    async def fail(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        yield Tokens(ids=tuple(stack.decoder.tokenizer.encode("one").ids))
        raise CallError("overloaded", "later")

    stack.decoder.script = fail
    with pytest.raises(Exception, match="later") as late:
        async for _ in await stack.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
        ):
            pass
    assert not isinstance(late.value, APIStatusError)  # The status was 200 by then.
    with pytest.raises(RateLimitError):
        await stack.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])


async def test_a_full_pool_is_too_many_requests(stack: Stack) -> None:
    async def never(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        await asyncio.Event().wait()
        yield Started(prompt_tokens=1)

    stack.decoder.script = never
    chat = body("Hi", part(data_url(bytes(2_500_000))))
    tasks = [asyncio.create_task(stack.http.post("/v1/chat/completions", json=chat)) for _ in range(2)]
    await until(lambda: stack.decoder.running == 2)
    response = await stack.http.post("/v1/chat/completions", json=chat)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "overloaded"
    assert response.headers["retry-after"]
    for task in tasks:
        task.cancel()
    await stack.idle()
    stack.decoder.script = None
    assert (await stack.http.post("/v1/chat/completions", json=chat)).status_code == 200


async def test_a_missing_panel_is_named(stack: Stack) -> None:
    await stack.stop("decode")
    try:
        response = await answers(stack.http, "/ready", 503)
        assert response.json()["missing"] == ["decode"]
        assert "decode" in response.json()["error"]["message"]
        response = await stack.http.post("/v1/chat/completions", json=body("Hi"))
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "unavailable"
        assert "decode" in response.json()["error"]["message"]
        assert (await stack.http.get("/health")).status_code == 200
    finally:
        await stack.start("decode")
        await answers(stack.http, "/ready", 200)
    assert (await stack.http.post("/v1/chat/completions", json=body("Hi"))).status_code == 200


async def test_many_at_once(stack: Stack) -> None:
    async def one(number: int) -> None:
        image = encoded(picture(8 + number, 8))
        response = await stack.http.post(
            "/v1/chat/completions", json=body(f"Number {number}", part(data_url(image)), stream=number % 2 == 0)
        )
        assert response.status_code == 200
        assert image in stack.decoder.images

    await asyncio.gather(*map(one, range(40)))
    assert len(stack.decoder.images) == 40
