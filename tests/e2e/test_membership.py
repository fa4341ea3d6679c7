"""Two encode, two prefill and two decode workers: all are used, who joins is used, who leaves or dies is not, and no
request is lost with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from benchmarks.stack import Stack, running_stack
from components.protocol import Instance, Role
from tests.e2e.conftest import Inside, join
from tests.e2e.test_bad_pictures import url
from tests.e2e.test_http import turn
from tests.e2e.test_tokens import picture
from tests.model import MODEL
from tests.waiting import until

CONFIG = Path(__file__).parents[2] / "configs" / "local-e2p2d2.yaml"
WORKERS: tuple[Role, ...] = ("encode", "prefill", "decode")
SETTINGS = [f"model.path={MODEL}", "model.name=tiny-vl"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(CONFIG, SETTINGS, cwd=tmp_path_factory.mktemp("pairs")) as running:
        yield running


@pytest_asyncio.fixture
async def seat(pairs: Stack) -> AsyncIterator[Inside]:
    async with join(pairs) as seat:
        await until_all(seat, 2)
        yield seat


@pytest_asyncio.fixture
async def web(pairs: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=pairs.url, timeout=60) as client:
        yield client


async def until_all(seat: Inside, count: int) -> None:
    """Every kind of worker is there ``count`` times."""
    found: dict[Role, int] = {}

    def look() -> bool:
        found.update({role: len(seat.instances(role)) for role in WORKERS})
        return all(number == count for number in found.values())

    await until(look, lambda: found, within=60)


async def until_replaced(seat: Inside, role: Role, victim: Instance) -> None:
    """The dead one is listed until its lease ends; only then does the count say that another stands in for it."""
    await until(lambda: victim.id not in seat.instances(role), lambda: f"{victim.id} is dead and still listed")
    await until_all(seat, 2)


async def crowd(web: httpx.AsyncClient, count: int, seed: int, tokens: int = 16) -> list[httpx.Response]:
    """That many different picture questions at once."""
    bodies = [
        {
            "model": "tiny-vl",
            "messages": turn("Describe.", picture(seed + n), picture(seed + 500 + n)),
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
            "trace": True,
        }
        for n in range(count)
    ]
    return await asyncio.gather(*(web.post("/v1/chat/completions", json=body) for body in bodies))


async def test_all_answer_and_all_are_used(web: httpx.AsyncClient, seat: Inside) -> None:
    workers = {id for role in ("prefill", "decode") for id in seat.instances(role)}
    seen: set[str] = set()

    async def look() -> bool:
        seen.update(name.split()[0] for name in await seat.held())
        return workers <= seen

    watching = asyncio.create_task(until(look, lambda: seen, within=60))
    responses = await crowd(web, 12, seed=1000)
    assert [response.status_code for response in responses] == [200] * 12
    await watching
    await seat.idle()


async def test_one_that_joins_is_used_and_one_that_leaves_is_not(
    web: httpx.AsyncClient, seat: Inside, pairs: Stack, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "workers.encode", "--id", "encode-late"]
    settings = [f"nats.servers=[{pairs.nats}]", f"etcd.endpoints=[{pairs.etcd}]", *SETTINGS]
    for setting in settings:
        command += ["--set", setting]
    late = await asyncio.create_subprocess_exec(*command, cwd=tmp_path)
    try:
        await until(lambda: "encode-late" in seat.instances("encode"), lambda: seat.instances("encode"), within=60)
        used = asyncio.create_task(_until_held(seat, "encode-late"))
        seeds = iter(range(2000, 3000, 20))
        while not used.done():
            assert all(response.status_code == 200 for response in await crowd(web, 6, next(seeds)))
        late.send_signal(signal.SIGTERM)
        responses = await crowd(web, 8, seed=4000)
        assert [response.status_code for response in responses] == [200] * 8
        assert await asyncio.wait_for(late.wait(), 60) == 0
        assert "encode-late" not in seat.instances("encode")
    finally:
        if late.returncode is None:
            late.kill()
    await seat.idle()


async def _until_held(seat: Inside, id: str) -> None:
    """Wait until that instance works on something."""

    async def look() -> bool:
        return any(name.startswith(id) for name in await seat.held())

    await until(look, lambda: f"{id} has nothing to do", within=60)


@pytest.mark.parametrize("role", WORKERS)
async def test_one_is_killed_under_load(web: httpx.AsyncClient, seat: Inside, role: Role) -> None:
    """kill -9 while requests run: all are answered, with the words they would have been answered with, by others; the
    supervisor starts a new one, and nothing is held in the end."""
    victim = next(iter(seat.instances(role).values()))
    seed = 5000 + 100 * WORKERS.index(role)
    asking = asyncio.create_task(crowd(web, 8, seed, tokens=64))
    await _until_held(seat, victim.id)
    os.kill(victim.pid, signal.SIGKILL)
    responses = await asking
    assert [response.status_code for response in responses] == [200] * 8, [r.text for r in responses]
    await until_replaced(seat, role, victim)
    again = await crowd(web, 8, seed, tokens=64)
    assert list(map(said, responses)) == list(map(said, again))
    await seat.idle()


async def test_an_answer_goes_on_when_the_worker_that_decodes_it_dies(web: httpx.AsyncClient, seat: Inside) -> None:
    """Killed after the first tokens have reached the client, drawn with a seed: the rest comes from the other one."""
    body = {
        "model": "tiny-vl",
        "messages": turn("Describe.", picture(7000)),
        "temperature": 1.0,
        "seed": 3,
        "max_tokens": 400,
        "ignore_eos": True,
    }
    undisturbed = (await web.post("/v1/chat/completions", json=body)).json()
    await seat.idle()
    text = ""
    victim: Instance | None = None
    async with web.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            assert '"error"' not in line, line
            if not line.startswith("data: {"):
                continue
            text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            if text and victim is None:
                held = await seat.held()
                (victim,) = (each for each in seat.instances("decode").values() if f"{each.id} KV tokens" in held)
                os.kill(victim.pid, signal.SIGKILL)
    assert text == undisturbed["choices"][0]["message"]["content"]
    assert victim is not None
    await until_replaced(seat, "decode", victim)
    await seat.idle()


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def test_this_machine_and_its_network_are_no_pictures(web: httpx.AsyncClient, pairs: Stack) -> None:
    for address in (f"{pairs.url}/health", "http://localhost/a.png", "http://[::1]/", "http://10.0.0.1/x.png"):
        content = [url(address), {"type": "text", "text": "What is it?"}]
        body = {"model": "tiny-vl", "messages": [{"role": "user", "content": content}]}
        response = await web.post("/v1/chat/completions", json=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "image_unreachable"
    good = await web.post("/v1/chat/completions", json={"model": "tiny-vl", "messages": turn("Hi", picture(1))})
    assert good.status_code == 200
