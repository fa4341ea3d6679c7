"""What the transfer benchmark measures, point by point, and what it makes of the seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = (64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB)
DYNAMO_SIZES = (MIB, 8 * MIB, 32 * MIB)
KV_7B = (2 * 28, 1500 * 4 * 128 * 2)
"""Buffers and bytes of each: keys and values of 28 layers, 1,500 tokens, 4 KV heads of 128, two bytes each."""


@dataclass(frozen=True)
class Point:
    """What is measured. ``size`` is the bytes of one operation, cut into ``buffers`` equal pieces."""

    here: str
    there: str
    kind: str
    size: int
    buffers: int = 1
    in_flight: int = 1
    label: str = ""

    @property
    def piece(self) -> int:
        return self.size // self.buffers


KEYS = tuple(Point.__dataclass_fields__)


def points(here: str, there: str, sizes: Sequence[int], *, quick: bool, most: int) -> list[Point]:
    """One buffer at every size; then several buffers, and several operations in flight, at some of them."""
    kinds = ("read", "write")
    sizes = [size for size in sizes if size <= most]
    found = [Point(here, there, kind, size) for kind in kinds for size in sizes]
    if not quick:
        cut = [size for size in sizes if size in (MIB, 64 * MIB)]
        found += [Point(here, there, kind, size, buffers=n) for kind in kinds for size in cut for n in (8, 64)]
        many = (64 * KIB, MIB, 4 * MIB, 64 * MIB) if "cpu" not in (here, there) else (64 * KIB, MIB, 4 * MIB)
        found += [Point(here, there, kind, size, in_flight=16) for kind in kinds for size in sizes if size in many]
    buffers, piece = KV_7B
    if buffers * piece <= most:
        found.append(Point(here, there, "write", buffers * piece, buffers=buffers, label="KV of a 7B model"))
    return found


def at(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def timing(point: Point, seconds: Sequence[float]) -> dict[str, float]:
    """Of rounds: one operation, or ``in_flight`` of them from first begin to last end."""
    ordered = sorted(seconds)
    median = at(ordered, 0.5)
    return {
        "n": len(ordered),
        "min_us": round(ordered[0] * 1e6, 1),
        "p50_us": round(median * 1e6, 1),
        "p99_us": round(at(ordered, 0.99) * 1e6, 1),
        "GB_per_s": round(point.size * point.in_flight / median / 1e9, 3),
    }


def row(what: str, point: Point, seconds: Sequence[float], **more: Any) -> dict[str, Any]:
    return {"what": what, **asdict(point), **timing(point, seconds), **more}


def compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside raw NIXL, a line a point."""
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in rows:
        if "size" in each:
            table.setdefault(tuple(each[key] for key in KEYS), {})[each["what"]] = each
    lines = []
    for key, found in table.items():
        if not {"raw", "ours"} <= found.keys():
            continue
        raw, ours = found["raw"], found["ours"]
        line = dict(zip(KEYS, key, strict=True))
        line |= {"raw_us": raw["p50_us"], "ours_us": ours["p50_us"]}
        line |= {"raw_p99_us": raw["p99_us"], "ours_p99_us": ours["p99_us"], "n": ours["n"]}
        line["added_us"] = round(ours["p50_us"] - raw["p50_us"], 1)
        line["ratio"] = round(ours["p50_us"] / raw["p50_us"], 3)
        if "dynamo" in found:
            theirs = found["dynamo"]
            line |= {"dynamo_us": theirs["p50_us"], "dynamo_p99_us": theirs["p99_us"]}
            line["times_faster"] = round(theirs["p50_us"] / ours["p50_us"], 1)
        lines.append(line)
    return lines
