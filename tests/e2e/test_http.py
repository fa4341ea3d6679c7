"""The API as its users use it: the official client, against everything real."""

from __future__ import annotations

import base64
import json

import httpx
import openai
import pytest

from benchmarks.reference import Reference
from benchmarks.stack import Stack
from tests.e2e.conftest import Inside
from tests.e2e.test_tokens import picture
from tests.media.webserver import web_server
from tests.servers import ROOT


def part(data: bytes, mime: str = "image/png") -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}


def turn(text: str, *pictures: bytes) -> list[dict[str, object]]:
    content: list[dict[str, object]] = [*map(part, pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def answer(client: openai.OpenAI, messages: list[dict[str, object]], **options: object) -> str:
    options = {"temperature": 0, "max_tokens": 24} | options
    completion = client.chat.completions.create(model="tiny-vl", messages=messages, **options)
    return completion.choices[0].message.content or ""


def test_streamed_and_whole_answers_are_those_of_generate(client: openai.OpenAI, reference: Reference) -> None:
    messages = turn("What do you see?", picture(1))
    parts = [{"type": "image"}, {"type": "text", "text": "What do you see?"}]
    tokens = reference.chat([{"role": "user", "content": parts}], [picture(1)], 24, stop=True).token_ids
    expected = reference.tokenizer.decode(tokens, skip_special_tokens=True)
    assert answer(client, messages) == expected
    stream = client.chat.completions.create(
        model="tiny-vl",
        messages=messages,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == len(tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def sample(name: str) -> bytes:
    return (ROOT / "examples" / "pictures" / f"{name}.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        ("shapes", "How many shapes are there?", "four"),
        ("shapes", "What colour is the star?", "blue"),
        ("count", "How many stars are there?", "five"),
        ("word", "What word is written?", "RIVER"),
        ("number", "What number is this?", "42"),
        ("icon", "What is this?", "fox"),
    ],
)
def test_the_bundled_model_sees_the_sample_pictures(
    client: openai.OpenAI, name: str, question: str, expected: str
) -> None:
    assert expected in answer(client, turn(question, sample(name)))


def test_two_pictures_and_their_order(client: openai.OpenAI) -> None:
    question = "What is in the first picture?"
    assert "fox" in answer(client, turn(question, sample("icon"), sample("count")))
    assert "fox" not in answer(client, turn(question, sample("count"), sample("icon")))


def test_a_conversation_that_refers_back(client: openai.OpenAI) -> None:
    first = turn("What is this?", picture(3))
    said = answer(client, first)
    again = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "Are you sure?"}]
    assert answer(client, [{"role": "system", "content": "Be brief."}, *again])


async def test_a_picture_by_url(stack: Stack, inside: Inside) -> None:
    async with web_server() as web, openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        url = web.serve("/a.png", picture(4))

        async def ask(source: dict[str, object]) -> str | None:
            content = [source, {"type": "text", "text": "What is it?"}]
            completion = await client.chat.completions.create(
                model="tiny-vl", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=16
            )
            return completion.choices[0].message.content

        by_url = await ask({"type": "image_url", "image_url": {"url": url}})
        assert by_url == await ask(part(picture(4)))
        assert len(web.requests) == 1
    await inside.idle()


async def test_a_picture_is_encoded_once_for_each_salt(http: httpx.AsyncClient, inside: Inside) -> None:
    async def ask(**salt: str) -> tuple[str, str]:
        """What encode did, and the answer."""
        body = {"model": "tiny-vl", "messages": turn("What is it?", picture(77)), "temperature": 0, "max_tokens": 16}
        response = await http.post("/v1/chat/completions", json={**body, **salt, "trace": True})
        assert response.status_code == 200, response.text
        hops = [hop["name"] for hop in response.json()["triptych"]["hops"] if hop["stage"] == "encode"]
        return ", ".join(hops), response.json()["choices"][0]["message"]["content"]

    salts: list[dict[str, str]] = [{}, {"cache_salt": "ann"}, {"cache_salt": "bob"}]
    for expected in ("read image, encode", "cached embedding"):  # and what is known is not even read
        done, answers = zip(*[await ask(**salt) for salt in salts], strict=True)
        assert done == (expected,) * 3
        assert len(set(answers)) == 1
    await inside.idle()


def test_a_seed_repeats(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str:
        # Past the end of its one answer the model is sure of nothing.
        options = {"temperature": 2.0, "top_p": 0.95, "seed": seed, "extra_body": {"ignore_eos": True}}
        return answer(client, turn("Tell me a story."), max_tokens=60, **options)

    assert drawn(7) == drawn(7)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_max_tokens_and_stop(client: openai.OpenAI) -> None:
    options = {"extra_body": {"ignore_eos": True}}
    whole = answer(client, turn("Hello!"), max_tokens=24, **options)
    completion = client.chat.completions.create(
        model="tiny-vl", messages=turn("Hello!"), temperature=0, max_completion_tokens=5, **options
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None and completion.usage.completion_tokens == 5
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = client.chat.completions.create(
        model="tiny-vl", messages=turn("Hello!"), temperature=0, max_tokens=24, stop=[middle], **options
    )
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == whole[: whole.index(middle)]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-vl"]
    assert client.models.retrieve("tiny-vl").id == "tiny-vl"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_no_such_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
    assert refused.value.code == "model_not_found"
    assert "gpt-4o" in refused.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny-vl", messages=turn("word " * 20_000), stream=stream)
    assert refused.value.code == "context_length_exceeded"


async def test_too_long_only_with_its_pictures(http: httpx.AsyncClient, inside: Inside, reference: Reference) -> None:
    """The text alone fits; prefill finds out when the pictures are counted."""
    context = reference.model.config.text_config.max_position_embeddings
    word = len(reference.tokenizer(" word" * 100, add_special_tokens=False)["input_ids"]) // 100
    text = " word" * ((context - 150) // word)
    alone = {"model": "tiny-vl", "messages": turn(text), "max_tokens": 1}
    assert (await http.post("/v1/chat/completions", json=alone)).status_code == 200
    response = await http.post("/v1/chat/completions", json={**alone, "messages": turn(text, *[picture(1)] * 3)})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "context_length_exceeded"
    await inside.idle()


async def test_an_answer_that_only_the_pictures_leave_no_room_for_ends_early(
    http: httpx.AsyncClient, reference: Reference
) -> None:
    """Where the text alone leaves no room, nothing is begun: that is known at once."""
    context = reference.model.config.text_config.max_position_embeddings
    body = {"model": "tiny-vl", "messages": turn(" word" * (context - 400), picture(1)), "ignore_eos": True}
    over = await http.post("/v1/chat/completions", json={**body, "max_tokens": 400})
    assert over.status_code == 400, over.text
    assert over.json()["error"]["code"] == "context_length_exceeded"
    assert f"maximum context length is {context} tokens. However, you requested" in over.json()["error"]["message"]
    response = await http.post("/v1/chat/completions", json={**body, "max_tokens": 370})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["usage"]["total_tokens"] == context
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_bad_json_a_bad_field_and_a_body_over_the_limit(http: httpx.AsyncClient) -> None:
    bad = await http.post("/v1/chat/completions", content=b"{nonsense", headers={"content-type": "application/json"})
    assert bad.status_code == 400 and bad.json()["error"]["message"]
    body = {"model": "tiny-vl", "messages": turn("Hi"), "temperature": "hot"}
    field = await http.post("/v1/chat/completions", json=body)
    assert field.status_code == 400 and field.json()["error"]["param"] == "temperature"
    large = json.dumps({"model": "tiny-vl", "messages": turn("x" * (33 << 20))})
    over = await http.post("/v1/chat/completions", content=large, headers={"content-type": "application/json"})
    assert over.status_code == 413
    assert (await http.get("/ready")).status_code == 200


async def test_a_client_that_hangs_up_frees_everything(http: httpx.AsyncClient, inside: Inside) -> None:
    """While it waits for its first token, and in the middle of an answer."""
    body = {
        "model": "tiny-vl",
        "messages": turn("Describe.", picture(50)),
        "max_tokens": 2000,
        "ignore_eos": True,
        "stream": True,
    }
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.aiter_lines()  # held on to: httpx hangs up when it is dropped
        async for line in lines:
            if '"content":"' in line:
                break
        assert await inside.held(), "it runs"
    await inside.idle()
    for timeout in (0.002, 0.005, 0.01, 0.02, 0.04):
        body["messages"] = turn("Describe.", picture(int(timeout * 1e4)), picture(51))
        with pytest.raises(httpx.TimeoutException):
            await http.post("/v1/chat/completions", json={**body, "stream": False}, timeout=timeout)
    await inside.idle()
