"""``triptych chat`` against a server that answers as the OpenAI API does: pieces, usage, hops, errors."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.cli.chat import ChatError, ask
from components.runtime.servers import free_port
from tests.cli.stack import Stack

HOP = {"stage": "encode", "name": "encode", "start": 5.5, "milliseconds": 2.25, "bytes": 4096, "lane": "shm"}
FIRST = {"stage": "frontend", "name": "receive", "start": 5.0, "milliseconds": 510.0, "bytes": 0, "lane": ""}


class Server(ThreadingHTTPServer):
    """``events`` is what a chat is answered with (None: ends without [DONE]); ``asked`` what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: list[str] = ["tiny-vl"]
        self.status = 200
        self.events: list[Any] = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "Two "}}]},
            {"choices": [{"delta": {"content": "shapes."}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"total_tokens": 9}, "triptych": {"hops": [HOP, FIRST]}},
            "[DONE]",
        ]
        self.asked: dict[str, Any] = {}
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": model} for model in self.server.models]}).encode())

    def do_POST(self) -> None:
        self.server.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.headers = {name.lower(): value for name, value in self.headers.items()}
        if self.server.status != 200:
            self._send(b'{"error": {"message": "no such picture", "type": "x"}}')
            return
        texts = [event if isinstance(event, str) else json.dumps(event) for event in self.server.events]
        self._send("".join(f"data: {text}\n\n" for text in texts).encode())

    def _send(self, body: bytes) -> None:
        self.send_response(self.server.status if self.command == "POST" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_the_pieces_come_one_by_one(server: Server) -> None:
    pieces: list[str] = []
    answer = await ask(server.url, "How many?", [], pieces.append, max_tokens=5, trace=True)
    assert pieces == ["Two ", "shapes."]
    assert answer.text == "Two shapes."
    assert answer.usage == {"total_tokens": 9}
    assert answer.hops == [HOP, FIRST]
    assert server.asked["model"] == "tiny-vl"
    assert server.asked["max_tokens"] == 5
    assert server.headers["x-triptych-trace"] == "1"


async def test_nothing_is_asked_for_that_nobody_wants(server: Server) -> None:
    await ask(server.url, "How many?", [], lambda _: None, model="other")
    assert server.asked["model"] == "other"
    assert "max_tokens" not in server.asked
    assert "x-triptych-trace" not in server.headers


async def test_files_go_as_data_and_urls_as_they_are(server: Server, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    await ask(server.url, "Same?", [str(picture), "https://example.org/b.png"], lambda _: None)
    *pictures, text = server.asked["messages"][0]["content"]
    data = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    assert [part["image_url"]["url"] for part in pictures] == [data, "https://example.org/b.png"]
    assert text == {"type": "text", "text": "Same?"}


async def test_a_file_that_is_not_there(server: Server) -> None:
    with pytest.raises(ChatError, match=r"--image none\.png: No such file"):
        await ask(server.url, "What?", ["none.png"], lambda _: None)


async def test_the_servers_own_words_for_an_error(server: Server) -> None:
    server.status = 422
    with pytest.raises(ChatError, match=r"^no such picture \(HTTP 422\)$"):
        await ask(server.url, "What?", [], lambda _: None)


async def test_an_error_in_the_middle(server: Server) -> None:
    server.events[2:] = [{"error": {"message": "decode was lost"}}, "[DONE]"]
    pieces: list[str] = []
    with pytest.raises(ChatError, match=r"^decode was lost$"):
        await ask(server.url, "What?", [], pieces.append)
    assert pieces == ["Two "]


async def test_an_answer_cut_short(server: Server) -> None:
    del server.events[3:]
    with pytest.raises(ChatError, match="ended before the answer did"):
        await ask(server.url, "What?", [], lambda _: None)


async def test_no_model_yet(server: Server) -> None:
    server.models = []
    with pytest.raises(ChatError, match="serves no model"):
        await ask(server.url, "What?", [], lambda _: None)


def test_the_command_prints_the_answer_and_the_way(server: Server, tmp_path: Path) -> None:
    command = Stack(tmp_path, "chat", "--url", server.url, "--trace", "How many?")
    assert command.end() == 0
    assert command.lines[0] == "Two shapes."
    rows = [line.split() for line in command.lines[-3:-1]]
    assert rows[0][:4] == ["0.0", "frontend", "receive", "510.0"]
    assert rows[1][:6] == ["500.0", "encode", "encode", "2.2", "4,096", "shm"]


def test_no_server_is_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = Stack(tmp_path, "chat", "--url", url, "Hello?")
    assert command.end() == 1
    (line,) = command.lines
    assert line.startswith(f"{url}: ")
    assert line.endswith("is `triptych up` running?")
