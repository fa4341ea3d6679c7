"""A picture of a result of the transfer benchmark, as SVG: time and its ratio to raw NIXL by size, a row a pair.

    python -m benchmarks.plot_transfer result.json picture.svg

Only points of one buffer and one operation in flight; the table beside the picture has the others.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.transfer_points import GIB, KIB, MIB

WIDTH, HEIGHT, TOP = 950, 620, 54
"""Of the whole, and of one pair of devices below its heading."""
PANEL_WIDTH, PANEL_HEIGHT, LEFT, GAP = 380, 220, 70, 460
TARGET = 1.25
COLOURS = {"raw": "#4a5578", "ours": "#c2410c", "dynamo": "#2f6f55", "copy": "#9aa1b5"}
NAMES = {"raw": "raw NIXL", "ours": "Triptych", "dynamo": "dynamo.nixl_connect", "copy": "plain copy, one process"}
STYLE = """
    .grid { stroke: #e2e5ee; stroke-width: 1; } .axis { stroke: #4a5578; fill: none; }
    .target { stroke: #4a5578; stroke-dasharray: 5 4; } .small { font-size: 12px; fill: #444; }
    .title { font-weight: 600; } .line { fill: none; stroke-width: 2; }
"""
Series = Sequence[tuple[float, float]]


def size_text(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def time_text(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"


@dataclass
class Panel:
    """One set of axes, both logarithmic."""

    x: float
    y: float
    sizes: tuple[float, float]
    values: tuple[float, float]

    def place(self, size: float, value: float) -> tuple[float, float]:
        across = math.log(size / self.sizes[0]) / math.log(self.sizes[1] / self.sizes[0])
        up = math.log(value / self.values[0]) / math.log(self.values[1] / self.values[0])
        return self.x + across * PANEL_WIDTH, self.y + (1 - up) * PANEL_HEIGHT

    def axes(self, title: str, sizes: Sequence[float], ticks: Sequence[tuple[float, str]]) -> list[str]:
        bottom, right = self.y + PANEL_HEIGHT, self.x + PANEL_WIDTH
        parts = [f'<text class="title" x="{self.x:.0f}" y="{self.y - 10:.0f}">{title}</text>']
        for size in sizes:
            x, _ = self.place(size, self.values[0])
            parts.append(f'<path class="grid" d="M{x:.1f} {self.y}V{bottom}"/>')
            parts.append(
                f'<text class="small" text-anchor="middle" x="{x:.1f}" y="{bottom + 17}">{size_text(size)}</text>'
            )
        for value, text in ticks:
            _, y = self.place(self.sizes[0], value)
            parts.append(f'<path class="grid" d="M{self.x} {y:.1f}H{right}"/>')
            parts.append(f'<text class="small" text-anchor="end" x="{self.x - 7}" y="{y + 4:.1f}">{text}</text>')
        return [*parts, f'<path class="axis" d="M{self.x} {self.y}V{bottom}H{right}"/>']

    def line(self, what: str, series: Series) -> list[str]:
        if not series:
            return []
        places = [self.place(*each) for each in sorted(series)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
        colour = COLOURS[what]
        return [f'<polyline class="line" stroke="{colour}" points="{path}"/>', f'<g fill="{colour}">{dots}</g>']


def powers(low: float, high: float) -> list[float]:
    """The powers of ten that enclose both."""
    return [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def draw(result: dict[str, Any]) -> str:
    rows = [row for row in result["rows"] if row.get("buffers") == row.get("in_flight") == 1 and not row.get("label")]
    pairs = list(dict.fromkeys((row["here"], row["there"]) for row in rows))
    height = TOP + HEIGHT * len(pairs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *_legend([what for what in NAMES if any(row["what"] == what for row in rows)]),
    ]
    for index, pair in enumerate(pairs):
        found = [row for row in rows if (row["here"], row["there"]) == pair]
        parts += _pair(f"{pair[0]} ↔ {pair[1]}", found, TOP + HEIGHT * index)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(shown: Sequence[str]) -> list[str]:
    parts = []
    for index, what in enumerate(shown):
        x = LEFT + index * 200
        parts.append(f'<path class="line" stroke="{COLOURS[what]}" d="M{x} 24h26"/>')
        parts.append(f'<text x="{x + 33}" y="29">{NAMES[what]}</text>')
    return parts


def _pair(name: str, rows: Sequence[dict[str, Any]], top: float) -> list[str]:
    sizes = sorted({row["size"] for row in rows})
    span = (sizes[0], sizes[-1]) if len(sizes) > 1 else (sizes[0] / 2, sizes[0] * 2)
    ticks = [size for size in sizes if math.log2(size / sizes[0]) % 4 == 0]
    decades = powers(min(row["p50_us"] for row in rows) / 1e6, max(row["p50_us"] for row in rows) / 1e6)
    times = {
        kind: {
            what: {row["size"]: row["p50_us"] / 1e6 for row in rows if (row["what"], row["kind"]) == (what, kind)}
            for what in ("raw", "ours", "dynamo")
        }
        for kind in ("read", "write")
    }
    ratios = {
        kind: [(size, value / found["raw"][size]) for size, value in found["ours"].items() if size in found["raw"]]
        for kind, found in times.items()
    }
    highest = max([2.0, *(ratio for series in ratios.values() for _, ratio in series)]) * 1.1
    marks = [value for value in (1, TARGET, 2, 5, 10, 20, 50, 100) if value <= highest]
    copies = [(row["size"], row["p50_us"] / 1e6) for row in rows if row["what"] == "copy"]
    parts = []
    for column, kind in enumerate(("read", "write")):
        x = LEFT + column * GAP
        panel = Panel(x, top + 30, span, (decades[0], decades[-1]))
        parts += panel.axes(f"{name}, {kind}: median time", ticks, [(each, time_text(each)) for each in decades])
        parts += panel.line("copy", copies)
        for what, series in times[kind].items():
            parts += panel.line(what, list(series.items()))
        panel = Panel(x, top + 330, span, (0.7, highest))
        parts += panel.axes(f"{name}, {kind}: Triptych's median over raw NIXL's", ticks, [(m, f"{m:g}") for m in marks])
        (left, y), (right, _) = panel.place(span[0], TARGET), panel.place(span[1], TARGET)
        parts.append(f'<path class="target" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts += panel.line("ours", ratios[kind])
    return parts


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text())))
