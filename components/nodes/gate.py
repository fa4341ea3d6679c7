"""The health gate: the whole topology is there, and one real completion with a picture comes back."""

from __future__ import annotations

import asyncio
import base64
import io

import httpx2
from PIL import Image

from components.config import Topology
from components.protocol import Role

_LOOK_SECONDS = 0.2
_NEEDED: tuple[Role, ...] = ("processor", "encode", "prefill", "decode")


class GateError(Exception):
    """It does not answer as it must; the message says what it said."""


async def until_ready(url: str, topology: Topology, seconds: float) -> None:
    """Returns once ``/ready`` counts every replica of every panel. Raises ``GateError`` with what is missing."""
    wanted = {role: getattr(topology, role).replicas for role in _NEEDED}
    said = "nothing"
    try:
        async with asyncio.timeout(seconds), httpx2.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as client:
            while True:
                try:
                    response = await client.get("/ready")
                    said = response.text
                    panels = response.json().get("panels", {})
                    if response.is_success and all(panels.get(role, 0) >= count for role, count in wanted.items()):
                        return
                except httpx2.TransportError as error:
                    said = str(error) or type(error).__name__
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise GateError(f"{url}/ready after {seconds:g} s: {said}") from None


def picture(colour: tuple[int, int, int] = (200, 30, 30)) -> str:
    """A small one as a ``data:`` URL, so that it takes the way of all panels."""
    file = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


async def ask(url: str, model: str, seconds: float) -> str:
    """The answer to a question about a picture. Raises ``GateError``."""
    content = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "Which colour?"}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=seconds, trust_env=False) as client:
            response = await client.post("/v1/chat/completions", json=body)
    except httpx2.TransportError as error:
        raise GateError(f"{url}: {error or type(error).__name__}") from error
    if not response.is_success:
        raise GateError(f"{url}: HTTP {response.status_code}: {response.text}")
    return str(response.json()["choices"][0]["message"]["content"])
