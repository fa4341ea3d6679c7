"""The whole stack with TensorRT-LLM's stand-in below it: real panels, real transfers, an HTTP client."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from benchmarks.stack import Stack, running_stack
from components.engines.trtllm.model import Model
from tests.e2e.conftest import Inside, join
from tests.engines_trtllm import models
from tests.engines_trtllm.conftest import CONTRACT
from tests.engines_trtllm.expected import expected

TOKENS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.open(str(models.qwen(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def stack(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = ["engine=tensorrt-llm", f"model.path={model.folder}", "model.name=qwen", "encode.pool_bytes=4MiB"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CONTRACT), prepend=os.pathsep)
        with running_stack(sets=settings, cwd=tmp_path_factory.mktemp("stack")) as running:
            yield running


@pytest_asyncio.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=30) as client:
        yield client


@pytest_asyncio.fixture
async def inside(stack: Stack) -> AsyncIterator[Inside]:
    async with join(stack, "qwen") as seat:
        yield seat


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (84, 112, 3), dtype=np.uint8))


def body(text: str, pictures: list[Image.Image], tokens: int = TOKENS) -> dict[str, object]:
    content: list[dict[str, object]] = []
    for each in pictures:
        file = io.BytesIO()
        each.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    return {"model": "qwen", "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


async def ask(http: httpx.AsyncClient, text: str, pictures: list[Image.Image]) -> str:
    response = await http.post("/v1/chat/completions", json=body(text, pictures))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["usage"]["completion_tokens"] == TOKENS
    return str(answer["choices"][0]["message"]["content"])


def answer(model: Model, text: str, pictures: list[Image.Image]) -> str:
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{model.family.placeholder * len(pictures)}{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = expected(model, model.tokenizer.encode(prompt).ids, pictures, TOKENS)
    return str(model.tokenizer.decode(tokens))


async def test_answers_with_and_without_pictures_several_at_once(
    http: httpx.AsyncClient, inside: Inside, model: Model
) -> None:
    asked = [(f"Question {number}?", [picture(number + each) for each in range(number % 3)]) for number in range(6)]
    answers = await asyncio.gather(*(ask(http, text, pictures) for text, pictures in asked))
    assert answers == [answer(model, text, pictures) for text, pictures in asked]
    assert len(set(answers)) == len(answers)
    await inside.idle()


async def test_a_client_that_hangs_up_leaves_nothing_behind(http: httpx.AsyncClient, inside: Inside) -> None:
    request = {**body("Long", [picture(1)], 300), "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=request) as lines:
        async for line in lines.aiter_lines():
            if "content" in line:
                break
    await inside.idle()


async def test_what_the_engine_refuses_is_the_clients_to_mend(http: httpx.AsyncClient, inside: Inside) -> None:
    thin = Image.new("RGB", (4, 4000))
    response = await http.post("/v1/chat/completions", json=body("What?", [thin]))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "image_undecodable"
    await inside.idle()
