"""A picture of the way of a request, as SVG: each hop where it lies in time, medians of the requests that ran alone.

python -m benchmarks.plot_serve result.json picture.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, TOP, ROW = 920, 250, 190, 54, 24
COLOURS = {
    "frontend": "#4a5578",
    "processor": "#7c6aa8",
    "encode": "#c2410c",
    "prefill": "#2f6f55",
    "decode": "#2563a8",
}


def draw(result: dict[str, Any]) -> str:
    hops = sorted(result["hops, alone"], key=lambda hop: (hop["start"], -hop["ms"]))
    end = max(hop["start"] + hop["ms"] for hop in hops)
    scale = (WIDTH - LEFT - RIGHT) / end
    height = TOP + ROW * len(hops) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="20" y="26" font-weight="600">The way of one request alone, '
        f"{result['settings']['tokens']} tokens: milliseconds from its arrival</text>",
    ]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if end / step <= 10)
    for tick in range(0, int(end) + 1, step):
        x = LEFT + tick * scale
        parts.append(f'<path stroke="#e2e5ee" d="M{x:.1f} {TOP - 8}V{height - 26}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle" fill="#444">{tick}</text>')
    for row, hop in enumerate(hops):
        y = TOP + row * ROW
        x, width = LEFT + hop["start"] * scale, max(2.0, hop["ms"] * scale)
        what = f"{hop['ms']:.1f} ms" + (f", {hop['bytes']:,} B" if hop["bytes"] else "")
        parts.append(f'<text x="20" y="{y + 13}" fill="{COLOURS[hop["stage"]]}">{hop["stage"]}</text>')
        parts.append(f'<text x="105" y="{y + 13}">{hop["name"]}</text>')
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="16" rx="3" fill="{COLOURS[hop["stage"]]}"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 13}" fill="#444">{what}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(json.loads(Path(sys.argv[1]).read_text())))
