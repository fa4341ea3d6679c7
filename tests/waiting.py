"""Tests wait for conditions, never for seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def until(
    condition: Callable[[], bool | Awaitable[bool]], state: Callable[[], Any], within: float = 10.0
) -> None:
    """Look fifty times a second; fails with ``state()`` when the condition does not come about ``within`` seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert asyncio.get_running_loop().time() < deadline, f"still, after {within} s: {state()}"
        await asyncio.sleep(0.02)
