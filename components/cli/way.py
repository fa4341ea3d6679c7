"""The way a request took, as a table with a time line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

_WIDTH = 32


def table(hops: Sequence[dict[str, Any]]) -> Table:
    """One row for each hop in the order of their starts, an outer one before what it holds.

    ``at`` counts milliseconds from the first. Each panel has its machine's clock: on several machines the rows of one panel
    are exact among themselves, and as exact against the others as the clocks are.
    """
    moved = sum(hop["bytes"] for hop in hops)
    result = Table(title="The way it took", title_justify="left", box=None, pad_edge=False, show_footer=moved > 0)
    for column in ("at ms", "panel", "step"):
        result.add_column(column, justify="right" if column == "at ms" else "left")
    result.add_column("ms", justify="right")
    result.add_column("bytes by NIXL", f"{moved:,}", justify="right")
    result.add_column("lane")
    result.add_column("time line")
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
            _bar(at, hop["milliseconds"], whole),
        )
    return result


def _bar(at: float, length: float, whole: float) -> str:
    """``whole`` milliseconds are ``_WIDTH`` characters; the shortest step is one."""
    scale = _WIDTH / whole if whole else 0.0
    first = min(int(at * scale), _WIDTH - 1)
    return " " * first + "=" * max(1, round(length * scale))
