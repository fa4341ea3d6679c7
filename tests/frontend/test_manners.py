"""HTTP around the API: what browsers, proxies, monitors and slow or rude clients do."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

import frontend.service
from components.messaging import Context
from components.protocol import GenerateDone, GenerateItem, GenerateRequest, Started, Tokens, Usage
from components.runtime.servers import free_port
from frontend import metrics
from tests.frontend.stack import Stack, answers
from tests.frontend.test_chat import body, data_url, part
from tests.media.pictures import encoded, picture
from tests.servers import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
HI = json.dumps(body("Hi")).encode()


@asynccontextmanager
async def another(stack: Stack, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a frontend of its own beside the stack's."""
    port = free_port()
    own = stack.topology.frontend.model_copy(update={"port": port, **settings})
    service = asyncio.create_task(frontend.service.run(stack.topology.model_copy(update={"frontend": own})))
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20.0, trust_env=False) as http:
            await answers(http, "/ready", 200)
            yield http
    finally:
        service.cancel()
        await asyncio.wait([service])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=application/json"},
    ],
)
async def test_what_a_web_page_can_send_anywhere_is_refused(stack: Stack, headers: dict[str, str]) -> None:
    response = await stack.http.post(CHAT, content=HI, headers={**headers, "origin": "http://evil.example"})
    assert response.status_code == 415, response.text
    assert response.json()["error"]["code"] == "unsupported_media_type"
    assert stack.decoder.requests == []


async def test_json_with_parameters_or_a_mark_of_its_encoding(stack: Stack) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await stack.http.post(CHAT, content=HI, headers=headers)).status_code == 200
    assert (await stack.http.post(CHAT, content=b"\xef\xbb\xbf" + HI, headers=headers)).status_code == 200


@pytest.mark.parametrize("content", [gzip.compress(HI), HI, gzip.compress(bytes(50_000_000))])
async def test_a_packed_body_is_refused_by_name(stack: Stack, content: bytes) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await stack.http.post(CHAT, content=content, headers=headers)
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "identity")
    assert "Content-Encoding gzip" in response.json()["error"]["message"]


async def test_head(stack: Stack) -> None:
    for path in ("/health", "/ready", "/v1/models", "/metrics", "/openapi.json"):
        response = await stack.http.head(path)
        assert (response.status_code, response.content) == (200, b""), path
    assert (await stack.http.head("/v1/nothing")).status_code == 404


async def test_a_slash_at_the_end(stack: Stack) -> None:
    assert (await stack.http.post(f"{CHAT}/", json=body("Hi"))).status_code == 200
    assert (await stack.http.get("/v1/models/")).json()["object"] == "list"
    assert (await stack.http.get("/health//")).status_code == 200


async def test_models_say_how_long_a_context_may_be(stack: Stack) -> None:
    (model,) = (await stack.http.get("/v1/models")).json()["data"]
    assert model["max_model_len"] == 512
    assert stack.topology.model.max_context is None


async def test_web_pages_only_from_where_the_settings_say(stack: Stack) -> None:
    asked = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization,content-type"
    response = await stack.http.options(CHAT, headers=asked)
    assert response.status_code == 405 and "access-control-allow-origin" not in response.headers
    async with another(stack, cors_origins=("https://chat.example",)) as http:
        response = await http.options(CHAT, headers=asked)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, asked["origin"])
        response = await http.post(CHAT, json=body("Hi"), headers={"origin": asked["origin"]})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, asked["origin"])
        response = await http.options(CHAT, headers={**asked, "origin": "https://evil.example"})
        assert response.status_code == 400 and "access-control-allow-origin" not in response.headers


def hang_ups() -> float:
    return metrics.HANG_UPS._value.get()


async def test_whole_answers_are_not_hang_ups(stack: Stack) -> None:
    """The server reports a disconnect after the last byte too; what the request holds is freed undisturbed."""
    before = hang_ups()
    for number in range(20):
        chat = body("Hi", part(data_url(encoded(picture()))), stream=number % 2 == 0)
        assert (await stack.http.post(CHAT, json=chat)).status_code == 200
    await stack.idle()
    assert hang_ups() == before


async def test_a_client_that_leaves_early_is_one(stack: Stack) -> None:
    before = hang_ups()

    async def never(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        await asyncio.Event().wait()

    stack.decoder.script = never
    task = asyncio.create_task(stack.http.post(CHAT, json=body("Hi", stream=True)))
    await until(lambda: stack.decoder.running == 1)
    task.cancel()
    await until(lambda: stack.decoder.running == 0)
    assert hang_ups() == before + 1


SLOW = [
    b"",
    b"GET /hea",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /he",
]


async def test_clients_that_do_not_go_on_are_cut_off(stack: Stack) -> None:
    """Slow headers, of a first request and of a later one, a byte now and then; and connections that say nothing."""
    async with another(stack, client_timeout_seconds=0.5) as http:

        async def client(begin: bytes) -> float:
            reader, writer = await asyncio.open_connection("127.0.0.1", http.base_url.port)
            began = time.monotonic()
            writer.write(begin)

            async def drip() -> None:
                while begin:
                    await asyncio.sleep(0.1)
                    writer.write(b"a")

            dripping = asyncio.create_task(drip())
            try:
                async with asyncio.timeout(20):
                    while await reader.read(4096):
                        pass
            except ConnectionError:
                pass
            finally:
                dripping.cancel()
                writer.close()
            return time.monotonic() - began

        for seconds in await asyncio.gather(*map(client, SLOW)):
            assert 0.4 < seconds < 10


async def test_who_does_not_read_is_cut_off(stack: Stack) -> None:
    ids = tuple(stack.decoder.tokenizer.encode(" one two three four" * 500).ids)

    async def much(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        while True:
            yield Tokens(ids=ids)
            await asyncio.sleep(0)

    stack.decoder.script = much
    before = hang_ups()
    async with another(stack, client_timeout_seconds=0.5) as http:
        _, writer = await asyncio.open_connection("127.0.0.1", http.base_url.port, limit=1)
        chat = json.dumps(body("Hi", stream=True, ignore_eos=True)).encode()
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (CHAT.encode(), len(chat)) + chat)
        await until(lambda: stack.decoder.running == 1)
        await until(lambda: stack.decoder.running == 0, seconds=15)
        writer.close()
    assert hang_ups() == before + 1


async def test_slow_but_steady_clients_are_served(stack: Stack) -> None:
    async def slow(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        yield Started(prompt_tokens=1)
        await asyncio.sleep(1.2)
        yield Tokens(ids=tuple(stack.decoder.tokenizer.encode("one").ids))
        yield GenerateDone(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))

    stack.decoder.script = slow
    async with another(stack, client_timeout_seconds=0.5) as http:
        for _ in range(2):
            assert (await http.post(CHAT, json=body("Hi"))).status_code == 200
            await asyncio.sleep(0.8)  # Idle between two requests.
