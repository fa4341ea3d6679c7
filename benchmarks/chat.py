"""What a benchmark asks over HTTP."""

from __future__ import annotations

import base64
from typing import Any


def chat_body(model: str, png: bytes, text: str, tokens: int) -> dict[str, Any]:
    """A question about a picture, for a greedy answer of exactly so many tokens, streamed, with its usage and hops."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "trace": True,
    }
