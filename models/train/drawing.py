"""From a `Picture` to plain numbers that the renderer takes: one row per sprite to paste, one for the background.

Numbers instead of pixels, because numbers travel fast from worker processes to the GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .scene import GROUNDS, STYLES, Picture, Print, Thing

SLOTS = 9
SLOT_FLOATS = 20
"""used, sprite, is_icon, x, y, half width, half height, cos, sin, fill r g b, second r g b, style, stroke, wobble,
wobble phase, icon row."""
ICON_SLOTS = 2
ICON_FLOATS = 14
GROUND_FLOATS = 16
"""first r g b, second r g b, kind, cos, sin, scale, seed, noise, blur, gain, and two unused."""

GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
GLYPH_CELL = 1.6
"""Side of a glyph's square, in ems."""


@dataclass
class Fonts:
    """advance: [fonts, glyphs] ems; cap: [fonts] height of a capital in ems; middle: [fonts] height of the centre of a
    glyph's square above the baseline, in ems; first: number of the first glyph sprite."""

    advance: np.ndarray
    cap: np.ndarray
    middle: np.ndarray
    first: int


def thing_row(thing: Thing, icon_row: int) -> list[float]:
    flip = -1.0 if thing.flip else 1.0
    # A sprite's square is a little larger than the thing, to leave room for outlines.
    half = thing.radius / 0.9
    return [1.0, thing.sprite, float(thing.kind == "icon"), thing.x, thing.y, half * thing.stretch * flip,
            half / thing.stretch, math.cos(thing.angle), math.sin(thing.angle), *thing.rgb, *thing.second,
            STYLES.index(thing.style), thing.stroke, thing.wobble, (thing.x * 7 + thing.y * 3) % 6.28,
            icon_row]  # fmt: skip


def print_rows(item: Print, fonts: Fonts) -> list[list[float]]:
    """One sprite per letter, along a slightly turned baseline."""
    em = item.cap / float(fonts.cap[item.font])
    letters = [GLYPHS.index(c) for c in item.text]
    advances = [float(fonts.advance[item.font, g]) * em * item.spacing for g in letters]
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    at, rows = -sum(advances) / 2, []
    drop = item.cap / 2 - float(fonts.middle[item.font]) * em
    half = GLYPH_CELL * em / 2
    for glyph, advance in zip(letters, advances, strict=True):
        dx, dy = at + advance / 2, drop
        sprite = fonts.first + item.font * len(GLYPHS) + glyph
        rows.append([1.0, sprite, 0.0, item.x + dx * cos - dy * sin, item.y + dx * sin + dy * cos, half, half, cos, sin,
                     *item.rgb, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0])  # fmt: skip
        at += advance
    return rows


def drawing(picture: Picture, fonts: Fonts) -> dict[str, np.ndarray]:
    """slots [SLOTS, SLOT_FLOATS], icons [ICON_SLOTS, ICON_FLOATS], ground [GROUND_FLOATS], all float32."""
    slots = np.zeros((SLOTS, SLOT_FLOATS), np.float32)
    icons = np.zeros((ICON_SLOTS, ICON_FLOATS), np.float32)
    rows: list[list[float]] = []
    icon_row = 0
    for thing in picture.things:
        rows.append(thing_row(thing, icon_row))
        if thing.kind == "icon":
            icons[icon_row] = thing.recolor
            icon_row += 1
    for item in picture.prints:
        rows += print_rows(item, fonts)
    rows = rows[:SLOTS]
    if rows:
        slots[: len(rows)] = rows
    g = picture.ground
    ground = np.array([*g.first, *g.second, GROUNDS.index(g.kind), math.cos(g.angle), math.sin(g.angle), g.scale,
                       g.seed, picture.noise, picture.blur, picture.gain, 0, 0], np.float32)  # fmt: skip
    return {"slots": slots, "icons": icons, "ground": ground}
