"""The one thread beside the event loop on which long bodies are looked through."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# One and not several: each thread that works takes the interpreter's lock from the event loop for some milliseconds
# whenever the loop has done something, and most of this work cannot be done by two at once anyway.
_thread = ThreadPoolExecutor(1, thread_name_prefix="long-bodies")


async def aside(work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """The result of ``work``, which takes more than a millisecond."""
    return await asyncio.get_running_loop().run_in_executor(_thread, functools.partial(work, *args, **more))
