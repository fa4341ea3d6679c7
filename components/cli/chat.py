"""Asks a running server through its OpenAI API and gives the answer back as it comes."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

TRACE_HEADER = "x-triptych-trace"


class ChatError(Exception):
    """No answer, or not all of it; the message is for the person who asked."""


@dataclass(frozen=True)
class Answer:
    """``usage`` as the API gives it; ``hops`` are empty unless asked for."""

    text: str
    usage: dict[str, Any]
    hops: list[dict[str, Any]]


def image_url(image: str) -> str:
    """A URL as it is; a file as a ``data:`` URL. Raises ChatError for a file that cannot be read."""
    if image.startswith(("http://", "https://", "data:")):
        return image
    path = Path(image)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ChatError(f"--image {image}: {error.strerror}") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


async def ask(
    url: str,
    text: str,
    images: Sequence[str],
    write: Callable[[str], None],
    *,
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    trace: bool = False,
) -> Answer:
    """Asks one question; ``write`` gets each piece of the answer when it arrives. Raises ChatError."""
    pictures = [{"type": "image_url", "image_url": {"url": image_url(image)}} for image in images]
    # No limit on the wait between two pieces: the server has its own, and says so.
    async with httpx2.AsyncClient(base_url=url, timeout=httpx2.Timeout(10.0, read=None), trust_env=False) as client:
        try:
            body: dict[str, Any] = {
                "model": model or await _served_model(client),
                "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}],
                "temperature": temperature,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            if max_tokens is not None:
                body["max_tokens"] = max_tokens
            headers = {TRACE_HEADER: "1"} if trace else {}
            async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                if not response.is_success:
                    raise ChatError(_reason(await response.aread(), response.status_code))
                return await _read(_events(response), write)
        except httpx2.TransportError as error:
            raise ChatError(f"{url}: {error or type(error).__name__}; is `triptych up` running?") from error


async def _served_model(client: httpx2.AsyncClient) -> str:
    response = await client.get("/v1/models")
    if not response.is_success:
        raise ChatError(_reason(response.content, response.status_code))
    models = response.json()["data"]
    if not models:
        raise ChatError("the server serves no model yet")
    return str(models[0]["id"])


def _reason(content: bytes, status: int) -> str:
    try:
        return f"{json.loads(content)['error']['message']} (HTTP {status})"
    except (ValueError, LookupError, TypeError):
        return f"HTTP {status}: {content[:200].decode(errors='replace')}"


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if data:
            yield json.loads(data)
    raise ChatError("the connection ended before the answer did")


async def _read(events: AsyncIterator[dict[str, Any]], write: Callable[[str], None]) -> Answer:
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    hops: list[dict[str, Any]] = []
    async for event in events:
        if "error" in event:
            raise ChatError(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", []):
            if piece := choice.get("delta", {}).get("content"):
                pieces.append(piece)
                write(piece)
        usage = event.get("usage") or usage
        hops = (event.get("triptych") or {}).get("hops") or hops
    return Answer("".join(pieces), usage, hops)
