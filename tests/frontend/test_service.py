"""Starting and stopping the frontend as a process would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx2
import pytest

import frontend.service
from components.messaging import Context
from components.protocol import GenerateDone, GenerateItem, GenerateRequest, Started, Tokens, Usage
from components.runtime.servers import free_port
from tests.frontend.stack import Stack, answers
from tests.frontend.test_chat import body
from tests.servers import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_stopping_lets_running_answers_finish(stack: Stack) -> None:
    go_on = asyncio.Event()

    async def slow(request: GenerateRequest, context: Context) -> AsyncIterator[GenerateItem]:
        ids = stack.decoder.tokenizer.encode(" one").ids
        yield Started(prompt_tokens=1)
        yield Tokens(ids=tuple(ids))
        await go_on.wait()
        yield Tokens(ids=tuple(ids))
        yield GenerateDone(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=2))

    stack.decoder.script = slow
    port = free_port()
    own = stack.topology.model_copy(update={"frontend": stack.topology.frontend.model_copy(update={"port": port})})
    service = asyncio.create_task(frontend.service.run(own))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20.0, trust_env=False) as http:
        await answers(http, "/ready", 200)
        idle, _ = await asyncio.open_connection("127.0.0.1", port)
        chat = asyncio.create_task(http.post("/v1/chat/completions", json=body("Hi", stream=True)))
        await until(lambda: stack.decoder.running == 1)
        service.cancel()
        # An idle connection is closed at once, and nobody new is let in.
        assert await idle.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not service.done() and not chat.done()
        go_on.set()
        response = await chat
        assert response.text.endswith("data: [DONE]\n\n") and "error" not in response.text
        await asyncio.wait([service])
        assert service.cancelled()


async def test_a_used_port_is_said_with_what_changes_it(stack: Stack) -> None:
    with pytest.raises(SystemExit, match=r"port \d+ of 127\.0\.0\.1 cannot be used .*frontend\.port"):
        frontend.service.bind("127.0.0.1", stack.topology.frontend.port)


async def test_what_is_written_is_sent_at_once() -> None:
    """TCP_NODELAY: a first token does not wait for the client's word that it has the headers."""
    nodelay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nodelay.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with frontend.service.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await asyncio.wait_for(nodelay, 10)
            writer.close()
