"""Draw the sample pictures in examples/pictures with the renderer of the training data.

python -m models.train.pictures OUT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import prepare, render
from .batch import stack_drawings
from .drawing import drawing
from .scene import Ground, Picture, Print, Thing
from .sources import ICON_SETS, fetch, read
from .vocabulary import SHAPES

SIDE = 448
WHITE, CREAM, MINT, SKY = (1.0, 1.0, 1.0), (1.0, 0.98, 0.93), (0.9, 0.97, 0.92), (0.9, 0.95, 1.0)
RED, ORANGE, YELLOW = (0.87, 0.16, 0.18), (0.96, 0.52, 0.1), (0.98, 0.84, 0.12)
GREEN, BLUE, PURPLE = (0.15, 0.6, 0.27), (0.13, 0.33, 0.8), (0.5, 0.2, 0.66)


def shape(
    name: str, color: str, rgb: tuple[float, float, float], x: float, y: float, radius: float, angle: float = 0.0
) -> Thing:
    """x, y, radius: shares of the side."""
    return Thing(
        "shape",
        name,
        color,
        rgb,
        x * SIDE,
        y * SIDE,
        radius * SIDE,
        angle=angle,
        sprite=SHAPES.index(name),
        style="framed",
        stroke=3.0,
        second=(rgb[0] * 0.55, rgb[1] * 0.55, rgb[2] * 0.55),
    )


def samples(font: int) -> dict[str, Picture]:
    def page(ground: tuple[float, float, float]) -> Picture:
        return Picture(SIDE, SIDE, Ground("", ground, ground))

    shapes = page(CREAM)
    shapes.things = [
        shape("circle", "red", RED, 0.24, 0.27, 0.16),
        shape("star", "blue", BLUE, 0.74, 0.26, 0.17, 0.1),
        shape("triangle", "green", GREEN, 0.27, 0.75, 0.16, -0.08),
        shape("heart", "purple", PURPLE, 0.74, 0.75, 0.15),
    ]
    count = page(SKY)
    count.things = [
        shape("star", "orange", ORANGE, x, y, 0.105, a)
        for x, y, a in ((0.2, 0.22, 0.1), (0.66, 0.2, -0.1), (0.42, 0.5, 0.0), (0.8, 0.62, 0.15), (0.25, 0.8, -0.12))
    ]
    word = page(MINT)
    word.prints = [Print("RIVER", "blue", BLUE, SIDE / 2, SIDE / 2, 0.155 * SIDE, font)]
    number = page(WHITE)
    number.prints = [Print("42", "red", RED, SIDE / 2, SIDE / 2, 0.22 * SIDE, font)]
    return {"shapes": shapes, "count": count, "word": word, "number": number}


def icon(sources: Path, key: str) -> Image.Image:
    """One Noto icon (Apache-2.0) on a pale ground."""
    noto = next(package for package in ICON_SETS if package.short == "noto")
    drawn = prepare.svg(json.loads(read(fetch(noto, sources), "icons.json")), key)
    assert drawn is not None
    inner = round(SIDE * 0.78)
    ground = Image.new("RGBA", (SIDE, SIDE), tuple(round(255 * c) for c in SKY))
    ground.alpha_composite(Image.fromarray(prepare.rasterize(drawn, inner)), ((SIDE - inner) // 2,) * 2)
    return ground.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=prepare.default_data())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    atlas, fonts, _ = render.load(args.data, icons="")
    names = [str(name) for name in np.load(args.data / "forms.npz")["fonts"]]
    pictures = samples(names.index("cabin-700"))
    drawn = stack_drawings([drawing(picture, fonts) for picture in pictures.values()])
    pixels = render.render({k: torch.from_numpy(v) for k, v in drawn.items()}, (SIDE, SIDE), atlas)
    for name, plane in zip(pictures, pixels.byte().permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(plane).quantize(64).save(args.out / f"{name}.png", optimize=True)
    icon(args.data / "sources", "fox").quantize(128).save(args.out / "icon.png", optimize=True)


if __name__ == "__main__":
    main()
