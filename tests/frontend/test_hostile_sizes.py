"""The largest and the just too large of every shape, beside others: a frontend process of its own under all of it."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from components.config.topology import REPOSITORY
from components.messaging import Context
from components.protocol import GenerateDone, GenerateItem, GenerateRequest, Started, Tokens, Usage
from components.runtime.servers import free_port
from tests.frontend.stack import MODEL, Stack, answers
from tests.frontend.test_chat import body, data_url, events, part

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
MIB = 2**20


def _text(text: str, ascii: bool = False) -> bytes:
    return json.dumps(body(text), ensure_ascii=ascii).encode()


def _raw(messages: bytes, more: bytes = b"") -> bytes:
    return b'{"model":"%b",%b"messages":[%b]}' % (MODEL.encode(), more, messages)


def part_of(written: bytes) -> bytes:
    return b'{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:;base64,%b"}}]}' % written


HI = b'{"role":"user","content":"a"}'
# What is sent, and the code of the error; "" where it is answered.
SHAPES: dict[str, tuple[bytes, str]] = {
    "words": (_text("word " * (3 * MIB // 5)), "context_length_exceeded"),
    "words beyond the limit": (_text("word " * (6 * MIB)), "context_length_exceeded"),
    "one word": (_text("9" * (3 * MIB)), "context_length_exceeded"),
    "blanks": (_text(" " * (3 * MIB)), "context_length_exceeded"),
    "Chinese": (_text("漢" * MIB), "context_length_exceeded"),
    "escapes": (_text("漢" * (MIB // 2), ascii=True), "context_length_exceeded"),
    "quotes": (_text('"' * MIB), "context_length_exceeded"),
    "control tokens": (_text("<|im_end|>" * 300_000), "context_length_exceeded"),
    "all messages": (_raw(b",".join([HI] * 2048)), "context_length_exceeded"),
    "10,000 messages": (_raw(b",".join([HI] * 10_000)), "array_above_max_length"),
    "100,000 messages": (_raw(b",".join([HI] * 100_000)), "array_above_max_length"),
    "a million messages": (_raw(b",".join([HI] * 1_000_000)), "context_length_exceeded"),
    "100,000 parts": (json.dumps(body(*["a"] * 100_000)).encode(), "array_above_max_length"),
    "a stop list": (_raw(HI, b'"stop":[' + b'"a",' * 900_000 + b'"a"],'), "array_above_max_length"),
    "a long stop": (_raw(HI, b'"stop":"' + b"a" * (3 * MIB) + b'",'), "invalid_request"),
    "empty objects": (_raw(HI, b'"tools":[' + b"{}," * MIB + b"{}],"), "invalid_request"),
    "a deep schema": (_raw(HI, b'"tools":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b","), "invalid_request"),
    "digits": (_raw(HI, b'"seed":' + b"9" * (3 * MIB) + b","), "invalid_request"),
    "an unknown field": (_raw(HI, b'"' + b" - at `$" * 400_000 + b'":1,'), "invalid_request"),
    "a wrong tag": (_raw(b'{"role":"' + b" - at `$.x`" * 300_000 + b'"}'), "invalid_request"),
    "many fields": (_raw(HI, b'"user":"a",' * 300_000), "array_above_max_length"),
    "a long model": (_raw(HI).replace(MODEL.encode(), b"m" * (3 * MIB)), "invalid_request"),
    "a long URL": (json.dumps(body(part("https://x.invalid/" + "a" * (3 * MIB)))).encode(), "invalid_request"),
    "data URLs that are short": (_raw(HI, b'"stop":[' + b'"data:,",' * 3_000_000 + b'""],'), "array_above_max_length"),
    "escaped quotes": (_raw(b'{"role":"user","content":"' + b'\\"data:,' * 50_000 + b'"}'), "context_length_exceeded"),
    "more of them": (_raw(b'{"role":"user","content":"' + b'\\"data:,' * 3_500_000 + b'"}'), "array_above_max_length"),
    "a text like a picture": (_text("data:," + "A" * (20 * MIB)), "context_length_exceeded"),
    "a picture": (json.dumps(body("x", part(data_url(bytes(17_000_000))))).encode(), ""),
    "a picture written oddly": (
        json.dumps(body("x", part("data:;base64," + base64.encodebytes(bytes(12_000_000)).decode()))).encode(),
        "",
    ),
    "a picture of escapes": (_raw(part_of(b"\\/" * (12 * MIB))), ""),
    "a picture of line breaks": (_raw(part_of(b"AAAA\\n" * (4 * MIB))), ""),
    "a picture of other escapes": (_raw(part_of(b"\\u0041" * (4 * MIB))), "image_undecodable"),
    "a picture of backslashes": (_raw(part_of(b"\\\\" * (12 * MIB))), "image_undecodable"),
    "16 pictures": (json.dumps(body("x", *[part(data_url(bytes(1_000_000)))] * 16)).encode(), ""),
    "no base64": (json.dumps(body("x", part("data:;base64," + "A" * 17_000_000 + "!"))).encode(), "image_undecodable"),
    "not JSON": (b"[" * (30 * MIB), "context_length_exceeded"),
    "blank JSON": (b" " * (30 * MIB), "context_length_exceeded"),
    "above the limit": (b" " * (33 * MIB), "body_too_large"),
}


class Frontend:
    """A frontend process, as large as the defaults make it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._port = free_port()

    async def __aenter__(self) -> Frontend:
        topology = self._stack.topology
        settings = {
            "model.path": topology.model.path,
            "model.name": MODEL,
            "nats.servers": topology.nats.servers[0],
            "etcd.endpoints": topology.etcd.endpoints[0],
            "frontend.port": self._port,
        }
        # fmt: off
        command = [sys.executable, "-m", "frontend", *(f"--set={key}={value}" for key, value in settings.items())]
        # fmt: on
        self._process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY)
        self.http = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{self._port}",
            timeout=60.0,
            trust_env=False,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )
        await answers(self.http, "/ready", 200)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        self._process.terminate()
        await self._process.wait()

    def memory(self) -> int:
        """Resident, in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) // 1024


# The client's part of this runs in a process of its own, so that only the frontend's delays are measured.
ASKER = """
import asyncio, sys, time
async def main(port):
    while True:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        assert b"alive" in await reader.read()
        writer.close()
        print(time.perf_counter() - began, flush=True)
        await asyncio.sleep(0.005)
asyncio.run(main(int(sys.argv[1])))
"""


async def measured(frontend: Frontend, work: AsyncIterator[None]) -> list[float]:
    """Seconds that each ``GET /health`` took while ``work`` went on, in order of length."""
    asker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASKER, str(frontend.http.base_url.port), stdout=asyncio.subprocess.PIPE
    )
    assert asker.stdout is not None
    try:
        await asker.stdout.readline()
        async for _ in work:
            pass
    finally:
        asker.terminate()
    lines = (await asker.stdout.read()).decode().splitlines()
    await asker.wait()
    return sorted(map(float, lines))


async def test_no_shape_of_a_request_holds_the_others(stack: Stack) -> None:
    """Each shape twice, two at a time. Bounds are on what is seen from outside, with room for a busy machine."""

    async def steady(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        id = stack.decoder.tokenizer.encode("1").ids[0]
        yield Started(prompt_tokens=1)
        words = request.sampling.max_tokens
        for _ in range(words):
            yield Tokens(ids=(id,))
            await asyncio.sleep(0.02 if words > 1 else 0)
        yield GenerateDone(finish_reason="length", usage=Usage(prompt_tokens=1, completion_tokens=words))

    stack.decoder.script = steady
    async with Frontend(stack) as frontend:
        done = asyncio.Event()

        async def neighbour() -> int:
            answered = 0
            while not done.is_set():
                response = await frontend.http.post(CHAT, json=body("Hi", stream=True, max_tokens=50))
                *chunks, done_word = events(response.text)
                said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
                assert (said, done_word) == ("1" * 50, "[DONE]"), response.text[-500:]
                answered += 1
            return answered

        async def send(name: str, content: bytes, code: str) -> None:
            response = await frontend.http.post(CHAT, content=content, headers=JSON)
            error = response.json().get("error", {"code": ""})
            assert error["code"] == code, (name, response.text[:500])
            assert len(response.content) < 1000 and "NATS" not in response.text, name

        async def hostile() -> AsyncIterator[None]:
            neighbours = [asyncio.create_task(neighbour()) for _ in range(4)]
            for name, (content, code) in SHAPES.items():
                if not code:
                    content = content.replace(b'"messages"', b'"max_tokens":1,"messages"', 1)
                began = time.monotonic()
                await asyncio.gather(*(send(name, content, code) for _ in range(2)))
                print(f"{name}: {time.monotonic() - began:.2f} s, {frontend.memory()} MB")
                yield
            done.set()
            assert all(await asyncio.gather(*neighbours))

        seconds = await measured(frontend, hostile())
        p99 = seconds[len(seconds) * 99 // 100]
        print(
            f"{len(seconds)} x /health: p50 {seconds[len(seconds) // 2]:.4f}, p99 {p99:.4f}, most {seconds[-1]:.4f} s"
        )
        assert p99 < 0.1
        assert seconds[-1] < 0.5


async def test_memory_comes_back(stack: Stack) -> None:
    """Of long texts and pictures, several at once; after the first rounds it grows no more."""
    names = [
        "words",
        "words beyond the limit",
        "100,000 parts",
        "a picture",
        "a picture written oddly",
        "above the limit",
    ]
    sizes = []
    async with Frontend(stack) as frontend:
        for _ in range(6):
            for name in names:
                posts = (frontend.http.post(CHAT, content=SHAPES[name][0], headers=JSON) for _ in range(4))
                await asyncio.gather(*posts)
            sizes.append(frontend.memory())
        print("MB resident after each round:", sizes)
        assert max(sizes[3:]) < max(sizes[:3]) + 64
        assert sizes[-1] < 700
