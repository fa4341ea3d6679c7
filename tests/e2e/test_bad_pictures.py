"""Bad pictures: each has its status and message, loses nothing, and the next request is served."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from benchmarks.reference import Reference
from components.messaging import CallError
from tests.e2e.conftest import Inside
from tests.e2e.test_http import part
from tests.e2e.test_tokens import SQUARE, Case, greedy, picture, turn
from tests.media.pictures import bomb, encoded
from tests.media.webserver import WebServer, web_server


@dataclass(frozen=True)
class Bad:
    """``body`` as a data: URL; the error's status, its code, and a word of its message."""

    body: bytes
    status: int
    code: str
    word: str


BAD = {
    "no bytes": Bad(b"", 400, "image_undecodable", "empty"),
    "text": Bad(b"Dear server, this is no picture.", 400, "image_undecodable", "not a readable picture"),
    "truncated": Bad(picture(1)[:-200], 400, "image_undecodable", "truncated"),
    "bomb": Bad(bomb(), 400, "image_too_large", "pixels"),
    "svg": Bad(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "image_undecodable", "SVG"),
}


def gif() -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


UNUSUAL = {
    "animated gif": gif(),
    "cmyk": encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"),
    "16 bit": encoded(Image.new("I;16", (64, 64), 40_000)),
    "palette": encoded(Image.new("RGB", (64, 64), "green").convert("P")),
    "transparent": encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 100))),
}


def body(*parts: dict[str, object]) -> dict[str, object]:
    content = [*parts, {"type": "text", "text": "What is it?"}]
    return {"model": "tiny-vl", "messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}


def url(address: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": address}}


async def post(http: httpx.AsyncClient, *parts: dict[str, object]) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body(*parts))


@pytest_asyncio.fixture(autouse=True)
async def the_next_request_is_served(http: httpx.AsyncClient, inside: Inside) -> AsyncIterator[None]:
    yield
    served = await post(http, part(picture(99)))
    assert served.status_code == 200, served.text
    await inside.idle()


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_picture(http: httpx.AsyncClient, name: str) -> None:
    bad = BAD[name]
    response = await post(http, part(picture(98)), part(bad.body))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (bad.status, bad.code)
    assert bad.word in error["message"]


async def test_base64_that_is_none(http: httpx.AsyncClient) -> None:
    response = await post(http, url("data:image/png;base64,!!!!"))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "image_undecodable"


@pytest.mark.parametrize("name", UNUSUAL)
async def test_an_unusual_picture_is_a_picture(http: httpx.AsyncClient, name: str) -> None:
    response = await post(http, part(UNUSUAL[name]))
    assert response.status_code == 200, response.text


@pytest_asyncio.fixture
async def web() -> AsyncIterator[WebServer]:
    async with web_server() as server:
        yield server


async def test_a_url_that_never_answers(http: httpx.AsyncClient, web: WebServer) -> None:
    silent = asyncio.Event()

    async def say_nothing(_: asyncio.StreamWriter) -> None:
        await silent.wait()

    web.pages["/never"] = say_nothing
    response = await post(http, url(web.url("/never")))
    silent.set()
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "image_unreachable" and "did not answer" in error["message"]


async def test_a_url_of_nothing(http: httpx.AsyncClient, web: WebServer) -> None:
    address = web.serve("/gone", b"gone", status="404 Not Found")
    response = await post(http, url(address))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "image_unreachable"


async def test_a_url_of_something_else(http: httpx.AsyncClient, web: WebServer) -> None:
    address = web.serve("/page", b"<html>hello</html>")
    response = await post(http, url(address))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "image_undecodable"


async def test_the_bad_picture_is_named(http: httpx.AsyncClient) -> None:
    """``param`` says where in the messages it is, though encode found out and prefill asked for all at once."""
    response = await post(http, part(picture(97)), part(b"no picture"), part(picture(96)))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.content.1"


async def test_a_picture_that_is_not_what_its_hash_says(inside: Inside, reference: Reference) -> None:
    """Known pictures are found by what a message says of them: what is kept is kept under what was read."""
    case = Case(1, 4, (SQUARE,))
    _, ids = turn(reference, case)
    (decode,) = inside.instances("decode").values()
    with pytest.raises(CallError, match="SHA-256") as caught:
        await inside.generate(decode, ids, case.pictures, greedy, model="tiny-vl", sha256_of="0" * 64)
    assert caught.value.code == "transfer_failed"
    await inside.idle()
    with pytest.raises(CallError):  # and nothing was kept under that name
        await inside.generate(decode, ids, [picture(98)], greedy, model="tiny-vl", sha256_of="0" * 64)
    await inside.idle()
