"""Giving back what a request held, whatever else happens meanwhile.

A request can be cancelled at any ``await``, also one in its own ``finally``: the caller dies just when the request has
failed, a deadline is followed by the caller's hanging up. What comes after that ``await`` would then never run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(cleanup: Coroutine[Any, Any, T]) -> T:
    """Await ``cleanup`` to its end, for its result. A cancellation that comes meanwhile is raised then, not before;
    else its error."""
    task = asyncio.ensure_future(cleanup)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()
