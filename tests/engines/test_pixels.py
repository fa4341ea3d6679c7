"""Patches are those of transformers' own processor, whose settings they take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from components.engines.transformers.pixels import Patches
from tests.model import MODEL

SIZES = [(224, 224), (640, 480), (37, 300), (1, 180), (2000, 1500)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_are_those_of_transformers(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = Qwen2VLImageProcessorPil.from_pretrained(MODEL)(images=[image], return_tensors="pt")
    patches = Patches(MODEL, torch.device("cpu"))
    pixels = patches.resized(image)
    assert patches.grid(pixels) == tuple(expected["image_grid_thw"][0].tolist())
    torch.testing.assert_close(patches.of(pixels), expected["pixel_values"], rtol=0, atol=2e-6)


def test_a_picture_too_long_for_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        Patches(MODEL, torch.device("cpu")).resized(Image.new("RGB", (1000, 4)))


def test_settings_of_another_model_are_refused(tmp_path: Path) -> None:
    """Not silently taken for those of Qwen2.5-VL."""
    settings = json.loads((MODEL / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    with pytest.raises(ValueError, match="normalized"):
        Patches(tmp_path, torch.device("cpu"))
