"""How many patches Qwen2.5-VL makes of a picture."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.engines.base import EngineError, Grid

_LONGEST_TO_SHORTEST = 200


@dataclass(frozen=True)
class Patches:
    """A side is a multiple of ``factor`` pixels after resizing, and a patch is ``size`` pixels wide and high."""

    size: int
    factor: int
    min_pixels: int
    max_pixels: int

    @classmethod
    def open(cls, folder: Path) -> Patches:
        config: dict[str, Any]
        if (file := folder / "preprocessor_config.json").exists():
            config = json.loads(file.read_text(encoding="utf-8"))
        else:  # where transformers 5 writes it
            config = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
        sizes = config.get("size") or {}
        return cls(
            size=config["patch_size"],
            factor=config["patch_size"] * config["merge_size"],
            min_pixels=config.get("min_pixels") or sizes["shortest_edge"],
            max_pixels=config.get("max_pixels") or sizes["longest_edge"],
        )

    def grid(self, width: int, height: int) -> Grid:
        """Sides rounded to whole factors, then scaled alike until the area fits (Qwen2-VL, arXiv 2409.12191, 2.1).

        Raises EngineError ``image_undecodable`` for a picture more than 200 times as long as wide.
        """
        if max(width, height) > _LONGEST_TO_SHORTEST * min(width, height):
            raise EngineError("image_undecodable", f"the model cannot take a picture of {width} x {height} pixels")
        sides = [round(side / self.factor) * self.factor for side in (height, width)]
        if math.prod(sides) > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            sides = [max(self.factor, math.floor(side / scale / self.factor) * self.factor) for side in (height, width)]
        elif math.prod(sides) < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            sides = [math.ceil(side * scale / self.factor) * self.factor for side in (height, width)]
        return 1, sides[0] // self.size, sides[1] // self.size
