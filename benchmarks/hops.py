"""The steps of many requests' ways, as one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def hop_table(ways: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of each hop, in the order of the way: ``ms``, ``start`` in ms from the first hop's, ``bytes``."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for way in ways:
        began = min((hop["start"] for hop in way), default=0.0)
        for hop in way:
            rows.setdefault((hop["stage"], hop["name"]), []).append(hop | {"start": (hop["start"] - began) * 1e3})
    return [
        {
            "stage": stage,
            "name": name,
            "ms": round(statistics.median(hop["milliseconds"] for hop in hops), 3),
            "start": round(statistics.median(hop["start"] for hop in hops), 3),
            "bytes": int(statistics.median(hop["bytes"] for hop in hops)),
            "lane": hops[-1]["lane"],
        }
        for (stage, name), hops in rows.items()
    ]
