"""Fetch the pinned sources and turn them into the two files that training and evaluation draw from.

forms.npz: distance maps of shapes and glyphs, font measures. icons.npz / icons-unseen.npz: rasterised icons.

    python -m models.train.prepare --data DIR [--only-unseen]
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from .distance import distance_map
from .drawing import GLYPH_CELL, GLYPHS
from .render import DISTANCE_RANGE
from .scene import Kit
from .sources import FONTS, ICON_SETS, UNSEEN_FONTS, UNSEEN_ICON_SET, Package, fetch, members, read
from .vocabulary import ICONS, SHAPES

FORM_SIDE = 64
ICON_SIDE = 128
FINE = 128
"""Side at which silhouettes of shapes and glyphs are drawn before their distance maps are shrunk to FORM_SIDE."""

FILL = 0.9
"""Share of its square that a shape or icon fills, see drawing.thing_row."""

FXEMOJI_NAMES = {
    "eggplant": "aubergine", "ear of corn": "earofmaize", "phone": "blacktelephone", "smartphone": "cellphone",
    "rabbit": "bunny", "necktie": "tie", "mouth": "lips", "hot pepper": "chilipepper", "scissors": "blackscissors",
    "sheep": "sheep", "dagger": "daggerknife", "camel": "bactriancamel", "knife": "hocho", "house": "housebuilding",
    "mountain": "snowmountains", "gem": "gem", "bell": "ringingbell", "dove": "doveofpeace", "panda": "pandaface",
    "wolf": "wolfface", "bouquet": "bouquetofflowers", "racing car": "racecar", "padlock": "lock", "boot": "boot",
    "high heel": "heels", "tennis ball": "tennisball", "flashlight": "electrictorch", "hourglass": "hourglass",
    "castle": "europeancastle", "gift": "present", "dragon": "dragonside", "leopard": "leopardside", "statue": "moyai",
    "locomotive": "steamlocomotive", "paintbrush": "lowerleftpaintbrush", "printer": "printericon",
    "shirt": "mansshirt", "backpack": "schoolsatchel", "pizza": "sliceofpizza", "basketball": "basketballandhoop",
    "bullseye": "directhit", "magnifying glass": "leftmagnifyingglass", "globe": "americasglobe",
    "fork and knife": "forkknife", "fountain pen": "lowerleftfountainpen", "crayon": "lowerleftcrayon",
    "mailbox": "openmailboxraised",
}  # fmt: skip
"""fxemoji names many icons in its own way."""


def default_data() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "triptych" / "train-data"


# ---------------------------------------------------------------- shapes and glyphs


def regular(
    points: int, radius: float, inner: float | None = None, turn: float = -math.pi / 2
) -> list[tuple[float, float]]:
    """A regular polygon, or a star when `inner` is given. Unit square from -1 to 1."""
    steps = points * (2 if inner else 1)
    return [
        (
            (inner if inner and i % 2 else radius) * math.cos(turn + 2 * math.pi * i / steps),
            (inner if inner and i % 2 else radius) * math.sin(turn + 2 * math.pi * i / steps),
        )
        for i in range(steps)
    ]


def silhouette(shape: str, side: int) -> torch.Tensor:
    """[side, side] bool."""
    grid = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    f = FILL
    if shape == "circle":
        return x**2 + y**2 < f**2
    if shape == "oval":
        return (x / f) ** 2 + (y / (0.55 * f)) ** 2 < 1
    if shape == "ring":
        return (x**2 + y**2 < f**2) & (x**2 + y**2 > (0.55 * f) ** 2)
    if shape == "moon":
        return (x**2 + y**2 < f**2) & ((x - 0.42) ** 2 + (y + 0.12) ** 2 > (0.72 * f) ** 2)
    if shape == "heart":
        a, b = x / f * 1.2, -y / f * 1.15 + 0.15
        return (a**2 + b**2 - 1) ** 3 - a**2 * b**3 < 0
    if shape == "cross":
        return ((x.abs() < 0.3 * f) | (y.abs() < 0.3 * f)) & (x.abs() < f) & (y.abs() < f)
    s = 0.82 * f
    polygon = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "triangle": [(0, -f), (f, 0.75 * f), (-f, 0.75 * f)],
        "diamond": [(0, -f), (0.62 * f, 0), (0, f), (-0.62 * f, 0)],
        "star": regular(5, f, 0.42 * f),
        "hexagon": regular(6, f, turn=0.0),
        "arrow": [(-f, -0.22), (0.15, -0.22), (0.15, -0.6), (f, 0), (0.15, 0.6), (0.15, 0.22), (-f, 0.22)],
    }[shape]
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).polygon([((px + 1) / 2 * side, (py + 1) / 2 * side) for px, py in polygon], fill=255)
    return torch.from_numpy(np.asarray(picture)) > 127


def faces(fonts: list[Package], sources: Path) -> Iterator[tuple[str, bytes]]:
    """(name, font file) of the regular and the bold face of each font."""
    for package in fonts:
        archive = fetch(package, sources)
        names = members(archive)
        for weight in (400, 700):
            member = f"files/{package.short}-latin-{weight}-normal.woff"
            if member in names:
                yield f"{package.short}-{weight}", read(archive, member)


def glyph(font: ImageFont.FreeTypeFont, letter: str, em: float, middle: float, side: int) -> torch.Tensor:
    """A letter in the centre of its square.

    em: pixels; middle: height of the square's centre above the baseline, ems.
    """
    picture = Image.new("L", (side, side))
    x = side / 2 - font.getlength(letter) / 2
    ImageDraw.Draw(picture).text((x, side / 2 + middle * em), letter, fill=255, font=font, anchor="ls")
    return torch.from_numpy(np.asarray(picture)) > 127


def to_int8(distance: torch.Tensor) -> np.ndarray:
    return (distance / DISTANCE_RANGE * 127).clamp(-127, 127).round().to(torch.int8).numpy()


def make_forms(sources: Path, out: Path, only_unseen: bool) -> None:
    shrink = FINE // FORM_SIDE
    maps = [to_int8(distance_map(silhouette(shape, FINE), shrink)) for shape in SHAPES]
    names, advance, cap, middle = [], [], [], []
    em = FINE / GLYPH_CELL
    chosen = [p for p in FONTS if not only_unseen or p.short in UNSEEN_FONTS]
    for name, data in tqdm(list(faces(chosen, sources)), desc="fonts"):
        font = ImageFont.truetype(io.BytesIO(data), em)
        box = font.getbbox("H", anchor="ls")
        height = -box[1] / em
        names.append(name)
        cap.append(height)
        middle.append(0.5 * height - 0.06)
        advance.append([font.getlength(letter) / em for letter in GLYPHS])
        maps += [to_int8(distance_map(glyph(font, letter, em, middle[-1], FINE), shrink)) for letter in GLYPHS]
    np.savez_compressed(
        out / "forms.npz",
        distance=np.stack(maps),
        advance=np.array(advance, np.float32),
        cap=np.array(cap, np.float32),
        middle=np.array(middle, np.float32),
        first_glyph=len(SHAPES),
        fonts=np.array(names),
    )


# ---------------------------------------------------------------- icons


def svg(table: dict, key: str) -> str | None:
    """The drawing of one icon of an Iconify set, aliases followed."""
    icon = table["icons"].get(key)
    if icon is None:
        alias = table.get("aliases", {}).get(key)
        # An alias may be a turned icon; only plain second names are wanted.
        if alias is None or set(alias) - {"parent", "hidden"}:
            return None
        return svg(table, alias["parent"])
    width, height = icon.get("width", table.get("width", 16)), icon.get("height", table.get("height", 16))
    left, top = icon.get("left", 0), icon.get("top", 0)
    body = icon["body"].replace("currentColor", "#222222")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )


def rasterize(drawing: str, side: int) -> np.ndarray:
    """[side, side, 4] uint8 RGBA, straight alpha."""
    try:
        import cairosvg
    except OSError as error:
        raise SystemExit("cairosvg needs the C library cairo (Debian: apt-get install libcairo2).") from error

    png = cairosvg.svg2png(bytestring=drawing.encode(), output_width=side, output_height=side)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((side, side)))


def icon_texture(drawing: str) -> np.ndarray | None:
    """[4, ICON_SIDE, ICON_SIDE] uint8: red, green, blue and the distance to the silhouette (128 = its border)."""
    inner = round(ICON_SIDE * FILL)
    pixels = np.zeros((ICON_SIDE, ICON_SIDE, 4), np.uint8)
    edge = (ICON_SIDE - inner) // 2
    pixels[edge : edge + inner, edge : edge + inner] = rasterize(drawing, inner)
    solid = torch.from_numpy(pixels[..., 3] > 127)
    if solid.float().mean() < 0.02:
        return None
    distance = distance_map(solid) / DISTANCE_RANGE * 127
    color = spread(torch.from_numpy(pixels[..., :3]), solid)
    return np.concatenate((color, (distance.clamp(-127, 127) + 128).round().to(torch.uint8)[None].numpy()))


def spread(rgb: torch.Tensor, solid: torch.Tensor) -> np.ndarray:
    """Colours of the silhouette carried a few pixels outwards, so that its soft border is not mixed with black."""
    color, weight = rgb.permute(2, 0, 1).float() * solid, solid.float()[None]
    for _ in range(4):
        sums = torch.nn.functional.avg_pool2d(torch.cat((color, weight))[None], 3, 1, 1)[0]
        fresh = (weight == 0) & (sums[3:] > 0)
        color = torch.where(fresh, sums[:3] / sums[3:].clamp_min(1e-6), color)
        weight = torch.maximum(weight, fresh.float())
    return color.round().to(torch.uint8).numpy()


def keys_of(package: Package, table: dict, name: str) -> list[str]:
    """The keys of a set that draw this name."""
    plain = {key.replace("-", ""): key for key in [*table["icons"], *table.get("aliases", {})]}
    wanted = list(ICONS[name])
    if package.short == "fxemoji" and name in FXEMOJI_NAMES:
        wanted.append(FXEMOJI_NAMES[name])
    return list(dict.fromkeys(plain[key.replace("-", "")] for key in wanted if key.replace("-", "") in plain))


def icon_drawings(package: Package, sources: Path) -> Iterator[tuple[str, str]]:
    """(name, SVG) of every icon of a set that the vocabulary names."""
    table = json.loads(read(fetch(package, sources), "icons.json"))
    for name in ICONS:
        for key in keys_of(package, table, name):
            drawing = svg(table, key)
            if drawing is not None:
                yield name, drawing


def make_icons(sources: Path, out: Path, unseen: bool) -> None:
    """Training sets into icons.npz, the set held out into icons-unseen.npz."""
    pixels, names, sets = [], [], []
    for package in ICON_SETS:
        if (package.short == UNSEEN_ICON_SET) != unseen:
            continue
        for name, drawing in tqdm(list(icon_drawings(package, sources)), desc=package.short):
            texture = icon_texture(drawing)
            if texture is not None:
                pixels.append(texture)
                names.append(name)
                sets.append(package.short)
    np.savez_compressed(
        out / ("icons-unseen.npz" if unseen else "icons.npz"),
        pixels=np.stack(pixels),
        names=np.array(names),
        sets=np.array(sets),
    )


# ---------------------------------------------------------------- what scenes may use


def kits(folder: Path, table: dict[str, np.ndarray]) -> tuple[Kit, Kit]:
    """The kit of training and that of evaluation. table: names of the icons of the loaded set."""
    fonts = [str(name).rsplit("-", 1)[0] for name in np.load(folder / "forms.npz")["fonts"]]
    seen = [i for i, name in enumerate(fonts) if name not in UNSEEN_FONTS]
    unseen = [i for i, name in enumerate(fonts) if name in UNSEEN_FONTS]
    icons: dict[str, list[int]] = {}
    for number, name in enumerate(table.get("names", [])):
        icons.setdefault(str(name), []).append(number)
    return Kit(seen, icons), Kit(unseen, icons, unseen=True, plain_icons=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="folder for sources and results")
    parser.add_argument("--only-unseen", action="store_true", help="only what evaluation needs")
    args = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    args.data.mkdir(parents=True, exist_ok=True)
    sources = args.data / "sources"
    make_forms(sources, args.data, args.only_unseen)
    make_icons(sources, args.data, unseen=True)
    if not args.only_unseen:
        make_icons(sources, args.data, unseen=False)
    print(f"ready in {args.data}")


if __name__ == "__main__":
    main()
