"""SGLang's vision tower beside that of transformers: the same rows, which tokens alone would not tell."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from PIL import Image

from components.config import load
from components.engines import sglang
from components.engines.base import EncodeEngine
from components.engines.sglang.encode import _Tower
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.encode import TransformersEncodeEngine
from components.nixl_connect import Slot
from tests.model import MODEL

SIZES = [(112, 112), (56, 140), (280, 56)]


class Memory:
    """As far as an encode engine knows a slot."""

    rows: torch.Tensor

    def tensor(self, dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
        self.rows = torch.empty(shape, dtype=dtype)
        return self.rows


def picture(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width * height)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def rows(engine: EncodeEngine, pictures: list[Image.Image]) -> list[torch.Tensor]:
    slots = [Memory() for _ in pictures]
    engine.encode([engine.prepare(each) for each in pictures], [cast(Slot, slot) for slot in slots])
    return [slot.rows for slot in slots]


@pytest.fixture(scope="module")
def ours() -> Any:
    return sglang.encode_engine(load(None, ["engine=sglang", f"model.path={MODEL}", "encode.device=cpu"]))


def test_the_tower_is_sglangs_own_and_its_rows_are_those_of_transformers(ours: Any) -> None:
    assert isinstance(ours._tower, _Tower) and type(ours._tower.visual).__module__.startswith("sglang.")
    theirs = TransformersEncodeEngine(Checkpoint.open(str(MODEL), device="cpu"))
    assert ours.format == theirs.format
    ours.warm_up()
    pictures = [picture(*size) for size in SIZES]
    expected = rows(theirs, pictures)
    for found in (rows(ours, pictures), [each for one in pictures for each in rows(ours, [one])]):
        for mine, other in zip(found, expected, strict=True):
            assert mine.shape == other.shape
            assert float((mine - other).norm() / other.norm()) < 1e-5
