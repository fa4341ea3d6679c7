"""What the benchmark and the processes of bare engines say to each other, without a heavy import."""

from __future__ import annotations

from typing import Literal

import msgspec

from components.engines.base import Grid

EngineRole = Literal["prefill", "decode", "whole"]


class Task(msgspec.Struct):
    """One prompt with at most one picture, unexpanded; ``room`` and ``port`` are where prefill and decode meet."""

    id: int
    token_ids: list[int]
    grid: Grid | None
    tokens: int
    room: int = 1
    port: int = 1


class Done(msgspec.Struct):
    """When new tokens came, in seconds of the clock that all processes of a machine share, and how many each time."""

    id: int
    prompt_tokens: int
    times: list[float]
    counts: list[int]
    error: str = ""


class Ready(msgspec.Struct):
    """The first line: the engine is up; ``port`` is that of its bootstrap server."""

    port: int | None
