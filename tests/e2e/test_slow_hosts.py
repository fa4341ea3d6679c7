"""A web server that never answers keeps waiting those who named it, and nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.stack import Stack, running_stack
from tests.e2e.conftest import join
from tests.e2e.test_bad_pictures import body, url
from tests.e2e.test_http import part
from tests.e2e.test_tokens import picture
from tests.media.webserver import web_server
from tests.model import MODEL
from tests.waiting import until

REQUESTS = 20
PATIENCE = ["encode.media.timeout_seconds=300", "frontend.request_timeout_seconds=300"]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that would wait for a picture longer than the test takes."""
    settings = [f"model.path={MODEL}", "model.name=tiny-vl", "encode.media.allow_private_networks=true"]
    with running_stack(sets=[*settings, *PATIENCE], cwd=tmp_path_factory.mktemp("s")) as stack:
        yield stack


async def seconds(http: httpx.AsyncClient) -> float:
    """For a request with one picture: the best of five."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        answer = await http.post("/v1/chat/completions", json=body(part(picture(50))))
        took.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
    return min(took)


async def test_requests_that_wait_for_a_slow_host_hold_nothing_that_others_need(patient: Stack) -> None:
    silent = asyncio.Event()

    async def never(writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    known = [part(picture(number)) for number in range(50, 65)]
    async with (
        web_server() as web,
        join(patient) as inside,
        httpx.AsyncClient(base_url=patient.url, timeout=300) as http,
    ):
        assert (await http.post("/v1/chat/completions", json=body(*known))).status_code == 200
        alone = await seconds(http)
        slow = []
        for number in range(REQUESTS):
            web.pages[f"/{number}"] = never
            content = body(*known, url(web.url(f"/{number}")))
            slow.append(asyncio.create_task(http.post("/v1/chat/completions", json=content)))
        await until(lambda: web.connections >= 16, lambda: web.connections, within=30)
        beside = await seconds(http)
        assert [task.result().text for task in slow if task.done()] == []
        held = {name: count for name, count in (await inside.held()).items() if "embedding" in name}
        silent.set()
        failed = await asyncio.gather(*slow)
        assert {answer.json()["error"]["code"] for answer in failed} == {"image_unreachable"}
        await inside.idle()
    assert held == {}
    assert beside < 3 * alone + 0.1, f"alone {alone:.3f} s, beside {REQUESTS} slow ones {beside:.3f} s"


async def test_many_requests_of_many_pictures_and_little_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Memory at encode for fewer pictures than one request has: all requests complete."""
    settings = [f"model.path={MODEL}", "model.name=tiny-vl", "encode.media.allow_private_networks=true"]
    settings += ["encode.pool_bytes=131072", "model.max_context=1024", "encode.replicas=2"]
    settings += ["transfer.deadline_seconds=60"]  # a busy machine waits longer for its turn
    with running_stack(sets=settings, cwd=tmp_path_factory.mktemp("s")) as stack:
        async with web_server() as web, httpx.AsyncClient(base_url=stack.url, timeout=90) as http:
            asked = []
            for request in range(24):
                parts = []
                for place in range(2 + request % 5):
                    data = picture(100 + 10 * request + place)
                    parts.append(url(web.serve(f"/{request}/{place}", data)) if place % 2 else part(data))
                asked.append(http.post("/v1/chat/completions", json=body(*parts)))
            answers = await asyncio.gather(*asked)
    assert [answer.text for answer in answers if answer.status_code != 200] == []
