"""The way a request took, as a table with a time line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.bar import Bar
from rich.table import Table


def table(hops: Sequence[dict[str, Any]]) -> Table:
    """One row for each hop in the order of their starts, an outer one before what it holds.

    ``at`` counts milliseconds from the first; ``bytes`` is what NIXL moved, with the sum below. Each panel has its
    machine's clock: rows of panels on different machines are as exact against each other as the clocks are.
    """
    moved = sum(hop["bytes"] for hop in hops)
    result = Table(title="The way it took", title_justify="left", box=None, pad_edge=False, show_footer=moved > 0)
    for column in ("at ms", "panel", "step"):
        result.add_column(column, justify="right" if column == "at ms" else "left")
    result.add_column("ms", justify="right")
    result.add_column("bytes", f"{moved:,}", justify="right")
    result.add_column("lane")
    result.add_column("time line", ratio=1, max_width=32)
    if not hops:
        return result
    ordered = sorted(hops, key=lambda hop: (hop["start"], -hop["milliseconds"]))
    began: float = ordered[0]["start"]
    whole: float = max((hop["start"] - began) * 1e3 + hop["milliseconds"] for hop in ordered)
    for hop in ordered:
        at: float = (hop["start"] - began) * 1e3
        result.add_row(
            f"{at:.1f}",
            str(hop["stage"]),
            str(hop["name"]),
            f"{hop['milliseconds']:.1f}",
            f"{hop['bytes']:,}" if hop["bytes"] else "",
            str(hop["lane"]),
            # The shortest step is still seen.
            Bar(whole, at, at + max(hop["milliseconds"], whole / 50), width=None),
        )
    return result
