"""The way a request took, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def table(hops: Sequence[dict[str, Any]]) -> Table:
    """One row for each hop, in the order of their starts; ``at`` counts from the first."""
    result = Table(title="The way it took", title_justify="left", box=None, pad_edge=False)
    for column in ("at ms", "panel", "step", "ms", "bytes", "lane"):
        result.add_column(column, justify="right" if column in ("at ms", "ms", "bytes") else "left")
    ordered = sorted(hops, key=lambda hop: float(hop["start"]))
    for hop in ordered:
        result.add_row(
            f"{(hop['start'] - ordered[0]['start']) * 1e3:.1f}",
            str(hop["stage"]),
            str(hop["name"]),
            f"{hop['milliseconds']:.1f}",
            f"{hop['bytes']:,}" if hop["bytes"] else "",
            str(hop["lane"]),
        )
    return result
