"""The largest of everything at every entrance, while others stream: they get whole answers, and so does ``/health``."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.stack import Stack
from components import aio
from components.messaging import CallError, Context
from components.protocol import ChatItem, ChatRequest, GenerateItem, GenerateRequest, Role, Sampling, TextPart, Turn
from tests.e2e.conftest import Inside
from tests.e2e.test_http import part, turn
from tests.media.pictures import bomb, encoded

MIB = 1 << 20
NOISE = np.random.default_rng(0)
AT_ONCE = 3
"""As many of each come together, again and again for so many seconds: long enough for some hundred looks at health."""
SECONDS = 2.0

QUESTIONS = ["Hello!", "What is a fox?", "Count to ten.", "Say something."]
HEALTH_P99 = 0.1


def text(content: str) -> bytes:
    return chat(turn(content))


def chat(messages: object, **more: object) -> bytes:
    return json.dumps({"model": "tiny-vl", "messages": messages, "max_tokens": 4} | more).encode()


def large_picture() -> bytes:
    pixels = NOISE.integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), compress_level=0)


# The whole bodies, by what is large in them; each is below the limit of 32 MiB. Texts of 700,000 bytes get past the
# frontend: the context could hold them, if they were of the longest tokens.
BODIES: dict[str, Callable[[], bytes]] = {
    "one word": lambda: text("a" * 700_000),
    "digits": lambda: text("7" * 700_000),
    "blanks": lambda: text(" " * 700_000),
    "CJK": lambda: text("你" * 230_000),
    "accents": lambda: text("e" + "\u0301" * 350_000),
    "special tokens": lambda: text("<|im_end|>" * 70_000),
    "a text that fits": lambda: text(" a" * 8000),
    "the longest text": lambda: text("Which word? " * (31 * MIB // 12)),
    "escapes": lambda: b'{"model":"tiny-vl","messages":[{"role":"user","content":"' + b"\\u4f60" * (5 * MIB) + b'"}]}',
    "messages": lambda: chat([{"role": "user", "content": "a"}] * 100_000),
    "empty messages": lambda: chat([{"role": "user", "content": ""}] * 500_000),
    "parts": lambda: chat([{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]),
    "empty parts": lambda: chat([{"role": "user", "content": [{"type": "text", "text": ""}] * 500_000}]),
    "pictures": lambda: chat([{"role": "user", "content": [part(b"")] * 100_000}]),
    "base64 of noise": lambda: chat(turn("What?", NOISE.bytes(17_000_000))),
    "base64 that is none": lambda: chat(turn("What?", b"")).replace(b"base64,", b"base64," + b"!" * (20 * MIB)),
    "a picture of 17 MB": lambda: chat(turn("What?", large_picture())),
    "a picture that unfolds": lambda: chat(turn("What?", bomb())),
    "stop strings": lambda: chat(turn("Hi"), stop=["never"] * 1_000_000),
    "long stop strings": lambda: chat(turn("Hi"), stop=["ab" * MIB] * 4),
    "unknown fields": lambda: chat(turn("Hi"), **{f"field{n}": n for n in range(1_000_000)}),
    "depth": lambda: chat(turn("Hi")).replace(b'"max', b'"x": ' + b"[" * 10 * MIB + b"]" * 10 * MIB + b', "max'),
    "a deep schema": lambda: chat(turn("Hi")).replace(
        b'"max',
        b'"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": '
        + b'{"properties": {"a": ' * 900_000
        + b"{}"
        + b"}}" * 900_000
        + b'}}, "max',
    ),
    "a number": lambda: chat(turn("Hi")).replace(b'"max', b'"seed": ' + b"7" * (20 * MIB) + b', "max'),
    "a fraction": lambda: chat(turn("Hi")).replace(b'"max', b'"top_p": 0.' + b"7" * (20 * MIB) + b', "max'),
    "no JSON": lambda: b'{"model": "' + b'\\"' * (15 * MIB),
    "a model's name": lambda: chat(turn("Hi"), model="m" * (30 * MIB)),
}

SAMPLING = Sampling(max_tokens=4)
# What one message of NATS holds, for those who get past the frontend.
MESSAGES: dict[str, tuple[Role, str, object, object]] = {
    "chat of messages": (
        "processor",
        "chat",
        ChatRequest(model="tiny-vl", turns=(Turn(role="user", parts=()),) * 55_000),
        ChatItem,
    ),
    "chat of digits": (
        "processor",
        "chat",
        ChatRequest(model="tiny-vl", turns=(Turn(role="user", parts=(TextPart(text="7" * 1_040_000),)),)),
        ChatItem,
    ),
    "token ids": (
        "decode",
        "generate",
        GenerateRequest(model="tiny-vl", token_ids=(7,) * 1_040_000, images=(), sampling=SAMPLING),
        GenerateItem,
    ),
}

POLLER = """
import http.client, json, select, sys, time
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)
seconds = []
while not select.select([sys.stdin], [], [], 0.005)[0]:
    began = time.perf_counter()
    connection.request("GET", "/health")
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    seconds.append(time.perf_counter() - began)
print(json.dumps(seconds))
"""


@dataclass
class Neighbours:
    """People who ask the same all the time, and look at every answer."""

    http: httpx.AsyncClient
    expected: dict[str, str]
    answers: int = 0

    async def ask(self, question: str) -> str:
        body = {"model": "tiny-vl", "messages": turn(question), "max_tokens": 150, "temperature": 0}
        said = []
        request = body | {"stream": True, "ignore_eos": True}
        async with self.http.stream("POST", "/v1/chat/completions", json=request) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    said += [choice["delta"].get("content") or "" for choice in event["choices"]]
        return "".join(said)

    async def go_on(self, question: str, enough: asyncio.Event) -> None:
        """Until they have heard ``enough``, and at least one answer."""
        while True:
            assert await self.ask(question) == self.expected[question]
            self.answers += 1
            if enough.is_set():
                return

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        enough = asyncio.Event()
        tasks = [aio.child(self.go_on(question, enough)) for question in QUESTIONS]
        try:
            yield
            enough.set()
            await asyncio.gather(*tasks)
        finally:
            await aio.end(*tasks)


@asynccontextmanager
async def health(http: httpx.AsyncClient) -> AsyncIterator[list[float]]:
    """How long ``/health`` took each time, in seconds, once the block is left; asked by a process of its own."""
    url = http.base_url
    command = [sys.executable, "-c", POLLER, url.host, str(url.port)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    seconds: list[float] = []
    try:
        yield seconds
        printed, _ = await process.communicate(b"enough\n")
        seconds += json.loads(printed)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, object]]:
    """What the first test that needs it finds out about the stack while nobody is hostile."""
    yield {}


@pytest.fixture
async def neighbours(http: httpx.AsyncClient, known: dict[str, object]) -> AsyncIterator[Neighbours]:
    found = Neighbours(http, {})
    if not known:
        known["expected"] = {question: await found.ask(question) for question in QUESTIONS}
        found.expected = known["expected"]  # type: ignore[assignment]
        async with health(http) as seconds, found.streaming():
            pass
        known["p99"] = p99(seconds)
    found.expected = known["expected"]  # type: ignore[assignment]
    yield found


async def nobody_is_hurt(
    http: httpx.AsyncClient, neighbours: Neighbours, known: dict[str, object], hostile: Callable[[], Awaitable[None]]
) -> None:
    loop = asyncio.get_running_loop()
    async with health(http) as seconds, neighbours.streaming():
        end = loop.time() + SECONDS
        while loop.time() < end:
            await asyncio.gather(*(hostile() for _ in range(AT_ONCE)))
    # A machine with more processes than cores is late by itself: by how much is known.
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) / 2)
    assert p99(seconds) < busy * max(HEALTH_P99, 3 * known["p99"]), (p99(seconds), max(seconds), known["p99"])  # type: ignore[operator]


@pytest.mark.parametrize("name", BODIES)
async def test_a_large_body(
    http: httpx.AsyncClient, inside: Inside, neighbours: Neighbours, known: dict[str, object], name: str
) -> None:
    body = BODIES[name]()
    assert len(body) < 32 * MIB
    headers = {"content-type": "application/json"}

    async def send() -> None:
        response = await http.post("/v1/chat/completions", content=body, headers=headers)
        assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
        if response.status_code != 200:
            assert len(response.content) < 10_000
            assert response.json()["error"]["message"]

    await nobody_is_hurt(http, neighbours, known, send)
    await inside.idle()


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_large_message(
    http: httpx.AsyncClient, inside: Inside, neighbours: Neighbours, known: dict[str, object], name: str
) -> None:
    role, operation, request, reply = MESSAGES[name]
    (instance,) = inside.instances(role).values()

    async def send() -> None:
        with pytest.raises(CallError) as refused:
            async with inside.bus.stream(
                instance.subject, operation, request, reply=reply, context=Context.new(60)
            ) as items:
                async for _ in items:
                    pass
        assert refused.value.code == "context_length_exceeded"

    await nobody_is_hurt(http, neighbours, known, send)
    await inside.idle()


async def test_what_is_just_within_the_limits_is_answered(http: httpx.AsyncClient, stack: Stack) -> None:
    many = [{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(1001)]
    for messages in (many, turn(" a" * 8000)):
        body = {"model": "tiny-vl", "messages": messages, "max_tokens": 4}
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
