"""What the vision tower raises is the outcome of the picture that it cannot take, and of nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from components import background
from components.engines.base import EngineError, PreparedImage
from workers.encode.batcher import Batcher


class Tower:
    """Fails at a picture whose pixels are an exception."""

    format: Any = None

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[int] = []

    def prepare(self, image: Any) -> PreparedImage:
        raise NotImplementedError

    def warm_up(self) -> None: ...

    def encode(self, images: Sequence[PreparedImage], slots: Sequence[Any]) -> None:
        self.open.wait()
        self.batches.append(len(images))
        for image in images:
            if isinstance(image.pixels, BaseException):
                raise image.pixels


@pytest.fixture
async def tower() -> Tower:
    return Tower()


@pytest.fixture
async def batcher(tower: Tower) -> AsyncIterator[Batcher]:
    made = Batcher(tower, max_images=8, window=0.0)
    yield made
    tower.open.set()
    await made.close()


def encode(batcher: Batcher, pixels: object = None) -> Any:
    return batcher.encode(PreparedImage(pixels, (1, 1, 1), 1), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA"), MemoryError(), ZeroDivisionError(), EngineError("internal", "")]
)
async def test_a_picture_that_the_tower_cannot_take_fails_alone(
    tower: Tower, batcher: Batcher, error: Exception
) -> None:
    first = asyncio.ensure_future(encode(batcher))
    others = [asyncio.ensure_future(encode(batcher, pixels)) for pixels in (None, error, None)]
    await asyncio.sleep(0)
    tower.open.set()
    await first
    assert await asyncio.gather(*others, return_exceptions=True) == [None, error, None]
    assert max(tower.batches) > 1
    await encode(batcher)  # and it goes on


async def test_the_end_of_the_batcher_fails_what_waits_and_is_heard_of(
    tower: Tower, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []

    async def broken(*_: object) -> None:
        raise OverflowError

    monkeypatch.setattr(batcher, "_gather", broken)
    with background.ends_process(reasons.append):
        with pytest.raises(OverflowError):
            await asyncio.wait_for(encode(batcher), 10)
        with pytest.raises(EngineError):
            await asyncio.wait_for(encode(batcher), 10)
    assert reasons == ["batcher ended unexpectedly"]
