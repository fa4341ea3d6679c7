"""Draw pictures by the batch with torch, on a GPU or (slowly) a CPU.

Shapes and letters are signed distance maps: sharp at every size, and outlines and hatching follow from the distance.
Icons are RGB with a distance map and a map of their inner edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .architecture import IMAGE_MEAN, IMAGE_STD
from .drawing import ICON_SLOTS, Fonts
from .scene import GROUNDS, HELD_OUT_GROUND, STYLES

DISTANCE_RANGE = 0.25
"""Distance maps are stored as int8; 127 stands for this share of half a sprite's side. Negative is inside."""


@dataclass
class Atlas:
    """forms: [sprites, 1, s, s] int8 distance maps of shapes, then glyphs;
    icons: [icons, 5, S, S] uint8 red, green, blue, distance (128 = the border), inner edges."""

    forms: Tensor
    icons: Tensor

    def to(self, device: torch.device | str) -> Atlas:
        return Atlas(self.forms.to(device), self.icons.to(device))


def inner_edges(rgb: Tensor) -> Tensor:
    """Where the colour changes inside an icon. rgb: [n, 3, S, S] uint8 -> [n, 1, S, S] uint8."""
    x = rgb.float() / 255
    dx = F.pad(x, (0, 2, 0, 0), mode="replicate")[..., 2:] - F.pad(x, (2, 0, 0, 0), mode="replicate")[..., :-2]
    dy = F.pad(x, (0, 0, 0, 2), mode="replicate")[..., 2:, :] - F.pad(x, (0, 0, 2, 0), mode="replicate")[..., :-2, :]
    strength = (dx**2 + dy**2).sum(1, keepdim=True).sqrt()
    return ((strength - 0.18) * 4).clamp(0, 1).mul(255).to(torch.uint8)


def load(
    folder: Path, device: torch.device | str = "cpu", icons: str = "icons.npz"
) -> tuple[Atlas, Fonts, dict[str, np.ndarray]]:
    """Atlas, font measures and the icon table written by prepare.py. icons: which set of icons, "" for none."""
    forms = np.load(folder / "forms.npz")
    fonts = Fonts(forms["advance"], forms["cap"], forms["middle"], int(forms["first_glyph"]))
    table: dict[str, np.ndarray] = {}
    stacked = torch.zeros(1, 5, 8, 8, dtype=torch.uint8)
    if icons:
        table = dict(np.load(folder / icons))
        pixels = torch.from_numpy(table.pop("pixels")).to(device)
        stacked = torch.cat([torch.cat((part, inner_edges(part[:, :3])), 1) for part in pixels.split(256)])
    atlas = Atlas(torch.from_numpy(forms["distance"])[:, None].to(device), stacked.to(device))
    return atlas, fonts, table


def unit_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x [1, width] and y [height, 1] of pixel centres."""
    x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    return x[None], y[:, None]


def lattice(x: Tensor, y: Tensor, seed: Tensor) -> Tensor:
    """A pseudo-random number in 0..1 for every whole (x, y), the same for the same seed."""
    return ((seed * 0.7548 + x * 12.9898 + y * 78.233).sin() * 43758.5453).remainder(1.0)


def clouds(x: Tensor, y: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in 0..1: lattice values, blended."""
    x0, y0 = x.floor(), y.floor()
    tx, ty = (x - x0), (y - y0)
    tx, ty = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty)
    top = lattice(x0, y0, seed) * (1 - tx) + lattice(x0 + 1, y0, seed) * tx
    low = lattice(x0, y0 + 1, seed) * (1 - tx) + lattice(x0 + 1, y0 + 1, seed) * tx
    return top * (1 - ty) + low * ty


def draw_ground(ground: Tensor, height: int, width: int) -> Tensor:
    """[n, GROUND_FLOATS] -> [n, 3, height, width] in 0..1."""
    x, y = unit_grid(height, width, ground.device)
    first, second = ground[:, 0:3, None, None], ground[:, 3:6, None, None]
    kind, cos, sin, scale, seed = (ground[:, i, None, None] for i in range(6, 11))
    along, across = x * cos + y * sin, y * cos - x * sin
    low = (width * cos).clamp_max(0) + (height * sin).clamp_max(0)
    high = (width * cos).clamp_min(0) + (height * sin).clamp_min(0)
    value = {
        "gradient": (along - low) / (high - low),
        "checker": ((along / scale).floor() + (across / scale).floor()).remainder(2),
        "stripes": soft_square((along / scale * math.pi).sin() * 3),
        "clouds": clouds(x / 30, y / 30, seed),
        HELD_OUT_GROUND: soft_square((along / scale * 2 * math.pi).sin() * (across / scale * 2 * math.pi).sin() * 2),
    }
    amount = torch.zeros_like(along)
    for number, name in enumerate(GROUNDS):
        if name in value:
            amount = torch.where(kind == number, value[name], amount)
    return first + (second - first) * amount[:, None]


def soft_square(wave: Tensor) -> Tensor:
    """A wave cut off at -1 and 1, moved to 0..1."""
    return (wave.clamp(-1, 1) + 1) / 2


def look_up(maps: Tensor, number: Tensor, channel: int, u: Tensor, v: Tensor) -> Tensor:
    """Bilinear reading of one channel. maps: [sprites, channels, s, s]; number: [n]; u, v: [n, h, w] in -1..1.

    On a GPU written out with plain indexing, so that the compiler fuses it with everything around it.
    """
    if not maps.is_cuda:
        return F.grid_sample(
            maps[number, channel, None].float(), torch.stack((u, v), -1), padding_mode="border", align_corners=False
        )[:, 0]
    channels, side = maps.shape[1], maps.shape[2]
    x, y = (((t + 1) * side - 1) / 2 for t in (u, v))
    x, y = x.clamp(0, side - 1), y.clamp(0, side - 1)
    x0, y0 = x.floor(), y.floor()
    tx, ty = x - x0, y - y0
    left, top = x0.int(), y0.int()
    right, low = (left + 1).clamp_max(side - 1), (top + 1).clamp_max(side - 1)
    flat, base = maps.reshape(-1), ((number * channels + channel) * side)[:, None, None]
    read = [flat[(base + row) * side + column].float() for row in (top, low) for column in (left, right)]
    return (read[0] * (1 - tx) + read[1] * tx) * (1 - ty) + (read[2] * (1 - tx) + read[3] * tx) * ty


def paint(canvas: Tensor, slot: Tensor, icon_rows: Tensor, forms: Tensor, icons: Tensor | None) -> Tensor:
    """Paste one sprite into each picture that has one in this slot.

    canvas: [n, 3, h, w]; slot: [n, SLOT_FLOATS]; icon_rows: [n, ICON_SLOTS, ICON_FLOATS]; icons: None where the slot
    never holds an icon.
    """
    height, width = canvas.shape[-2:]
    x, y = unit_grid(height, width, canvas.device)
    part = [slot[:, i, None, None] for i in range(slot.shape[1])]
    half_width = torch.where(part[0] > 0, part[5], 1.0)
    half_height = torch.where(part[0] > 0, part[6], 1.0)
    dx, dy = x - part[3], y - part[4]
    u = (dx * part[7] + dy * part[8]) / half_width
    v = (dy * part[7] - dx * part[8]) / half_height
    u, v = u + part[17] * (v * 5 + part[18]).sin(), v + part[17] * (u * 4 + part[18]).cos()
    pixels = torch.minimum(half_width.abs(), half_height)
    # Outside the sprite's square the map says nothing: fade by the distance from the square.
    beyond = (torch.maximum(u.abs(), v.abs()) - 1).clamp_min(0) * pixels * 4
    icon = part[2] > 0.5
    sprite = slot[:, 1].long()
    color, alpha = paint_form(part, u, v, pixels, beyond, torch.where(slot[:, 2] > 0.5, 0, sprite), forms)
    if icons is not None:
        rows = icon_rows[torch.arange(len(slot), device=slot.device), slot[:, 19].long()]
        number = torch.where(slot[:, 2] > 0.5, sprite, 0)
        marks, cover = paint_icon(rows, u, v, pixels, beyond, number, icons)
        color = [torch.where(icon, a, b) for a, b in zip(marks, color, strict=True)]
        alpha = torch.where(icon, cover, alpha)
    alpha = torch.where(part[0] > 0, alpha, 0.0)
    return torch.stack([canvas[:, c] + (color[c] - canvas[:, c]) * alpha for c in range(3)], 1)


def paint_form(
    part: list[Tensor], u: Tensor, v: Tensor, pixels: Tensor, beyond: Tensor, number: Tensor, forms: Tensor
) -> tuple[list[Tensor], Tensor]:
    """A shape or a letter, from its distance map: three colour planes and how much each pixel is covered."""
    distance = look_up(forms, number, 0, u, v) * (DISTANCE_RANGE / 127) * pixels + beyond
    style, stroke = part[15], part[16]
    inside = (0.5 - distance).clamp(0, 1)
    core = (0.5 - (distance + stroke)).clamp(0, 1)
    lines = soft_square(((u + v) * pixels / 3.2).sin() * 2) * core
    # Dots some 7 pixels apart; clouds of about a fifth of the sprite, different for each place.
    dots = soft_square((u * pixels / 2.2).sin() * (v * pixels / 2.2).sin() * 4) * core
    puffs = ((clouds(u * 5 + 9, v * 5 + 9, part[18]) - 0.5) * 2 + 0.5).clamp(0, 1) * core
    # How much of the second colour, by style.
    second = torch.zeros_like(inside)
    for name, share in (
        ("gradient", ((v + 1) / 2).clamp(0, 1)),
        ("framed", 1 - core),
        ("hatched", lines),
        ("pale", core),
        ("dotted", dots),
        ("cloudy", puffs),
    ):
        second = torch.where(style == STYLES.index(name), share, second)
    alpha = torch.where(style == STYLES.index("outline"), inside - core, inside)
    return [part[9 + c] + (part[12 + c] - part[9 + c]) * second for c in range(3)], alpha


def paint_icon(
    rows: Tensor, u: Tensor, v: Tensor, pixels: Tensor, beyond: Tensor, number: Tensor, icons: Tensor
) -> tuple[list[Tensor], Tensor]:
    """An icon: colours through a 3 x 3 matrix, inner edges and outline drawn dark as far as asked."""
    rgb = [look_up(icons, number, c, u, v) / 255 for c in range(3)]
    distance = (look_up(icons, number, 3, u, v) - 128) / 127 * DISTANCE_RANGE * pixels + beyond
    edge = look_up(icons, number, 4, u, v) / 255
    cell = [rows[:, i, None, None] for i in range(rows.shape[1])]
    outline = cell[13] * pixels
    inside = (0.5 - (distance - outline)).clamp(0, 1)
    core = (0.5 - (distance + outline)).clamp(0, 1)
    dark = torch.maximum(edge * cell[12], torch.where(outline > 0, inside - core, 0.0))
    mixed = [(sum(cell[3 * r + c] * rgb[c] for c in range(3)) + cell[9 + r]).clamp(0, 1) for r in range(3)]
    return [plane * (1 - 0.92 * dark) for plane in mixed], inside


def soften(canvas: Tensor, radius: Tensor) -> Tensor:
    """Blur by a 5 x 5 Gaussian. radius: [n] standard deviation in pixels; 0 leaves the picture as it is."""
    weights = [(-(tap**2) / (2 * radius.clamp_min(0.05) ** 2)).exp() for tap in range(3)]
    total = weights[0] + 2 * weights[1] + 2 * weights[2]
    centre, near, far = ((w / total)[:, None, None, None] for w in weights)
    for axis in (2, 3):
        size = canvas.shape[axis]
        padded = torch.cat([canvas.narrow(axis, 0, 1)] * 2 + [canvas] + [canvas.narrow(axis, size - 1, 1)] * 2, axis)
        tap = [padded.narrow(axis, i, size) for i in range(5)]
        canvas = far * (tap[0] + tap[4]) + near * (tap[1] + tap[3]) + centre * tap[2]
    return canvas


def finish(canvas: Tensor, ground: Tensor) -> Tensor:
    """Brightness, noise, and the 8-bit steps that every served picture has. 0..1 -> 0..255."""
    canvas = canvas * ground[:, 13, None, None, None]
    canvas = canvas + torch.randn_like(canvas[:, :1]) * ground[:, 11, None, None, None]
    return (canvas.clamp(0, 1) * 255).round()


@lru_cache(maxsize=1)
def compiled() -> tuple[Callable[..., Tensor], ...]:
    return tuple(torch.compile(f, dynamic=False) for f in (draw_ground, paint, soften, finish))


def render(drawings: dict[str, Tensor], size: tuple[int, int], atlas: Atlas) -> Tensor:
    """Pictures as whole numbers 0..255 in float32, [n, 3, height, width]. size: (width, height)."""
    width, height = size
    slots, ground, icon_rows = drawings["slots"], drawings["ground"], drawings["icons"]
    if slots.is_cuda:
        # On a GPU every picture goes through every slot: equal shapes compile once, and idle lanes cost hardly a thing.
        fast_ground, fast_paint, fast_soften, fast_finish = compiled()
        canvas = fast_ground(ground, height, width)
        for index in range(slots.shape[1]):
            icons = atlas.icons if index < ICON_SLOTS else None
            canvas = fast_paint(canvas, slots[:, index].contiguous(), icon_rows, atlas.forms, icons)
        return fast_finish(fast_soften(canvas, ground[:, 12]), ground)
    canvas = draw_ground(ground, height, width)
    for index in range(slots.shape[1]):
        # Shapes and icons apart, and only the pictures that have something here.
        for kind, icons in ((slots[:, index, 2] < 0.5, None), (slots[:, index, 2] > 0.5, atlas.icons)):
            here = ((slots[:, index, 0] > 0) & kind).nonzero().flatten()
            if len(here):
                canvas[here] = paint(canvas[here], slots[here, index], icon_rows[here], atlas.forms, icons)
    blurred = (ground[:, 12] > 0).nonzero().flatten()
    if len(blurred):
        canvas[blurred] = soften(canvas[blurred], ground[blurred, 12])
    return finish(canvas, ground)


def normalize(pictures: Tensor) -> Tensor:
    """0..255 -> what the vision tower takes: the image processor's rescaling and normalisation."""
    mean = torch.tensor(IMAGE_MEAN, device=pictures.device)[:, None, None]
    std = torch.tensor(IMAGE_STD, device=pictures.device)[:, None, None]
    return (pictures / 255 - mean) / std
