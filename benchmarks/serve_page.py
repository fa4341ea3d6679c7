"""What the benchmark of the whole service writes into a page, between two lines ``<!-- measured: serve -->``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import filled

WHAT = "serve"
ADDED_MS, TIMES = 25.0, 2.0
"""First token beside the single process's, and tokens per second with many at once: what is wanted."""


def write(page: Path, result: dict[str, Any]) -> None:
    """Raises ``SystemExit`` if the page has no place for it."""
    page.write_text(filled(page.read_text(), page, WHAT, section(result)))


def section(result: dict[str, Any]) -> str:
    settings = result["settings"]
    at_once = settings["at_once"]
    single, alone, crowd = (
        result[name] for name in ("one process", "three panels, alone", f"three panels, {at_once} at once")
    )
    added = result["first token, over one process, ms"]
    rows = [
        "| | first token, median | tokens/s | of one process |",
        "| --- | ---: | ---: | ---: |",
        f"| `model.generate`, one process | {_ms(single)} | {_rate(single)} | 1 |",
        f"| three panels, one at a time | {_ms(alone)} ({added:+.1f}) | {_rate(alone)} | {_ratio(alone, single)} |",
        f"| three panels, {at_once} at once, in all | {_ms(crowd)} | {_rate(crowd)} | {_ratio(crowd, single)} |",
    ]
    return "\n".join(
        [
            f"{settings['rounds']} rounds, {settings['tokens']} tokens an answer, {settings['threads']} thread(s) for "
            f"each model, {settings['cpus']} cores of {settings['machine']}; load before the run "
            f"{settings['load_before']}.",
            "",
            *rows,
            "",
            f"- First token alone: {added:+.1f} ms beside one process (wanted: at most {ADDED_MS:+.0f} ms).",
            f"- {at_once} at once: {_ratio(crowd, single)} times one process's tokens per second (wanted: {TIMES:g}).",
            "",
            "Each hop's share, one request at a time; hops overlap, so the shares add up to more than the whole:",
            "",
            *hops(result["hops, alone"]),
        ]
    )


def hops(way: Sequence[dict[str, Any]]) -> list[str]:
    """A table of what ``hop_table`` made."""
    whole = next(hop["ms"] for hop in way if (hop["stage"], hop["name"]) == ("frontend", "total"))
    lines = ["| panel | step | ms | share | bytes | lane |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for hop in way:
        size = f"{hop['bytes']:,}" if hop["bytes"] else ""
        share = f"{hop['ms'] / whole:.1%}"
        lines.append(f"| {hop['stage']} | {hop['name']} | {hop['ms']:.2f} | {share} | {size} | {hop['lane']} |")
    return lines


def _ms(row: dict[str, float]) -> str:
    return f"{row['first token ms']:.1f} ms"


def _rate(row: dict[str, float]) -> str:
    return f"{row['tokens/s']:.0f}"


def _ratio(row: dict[str, float], single: dict[str, float]) -> str:
    return f"{row['tokens/s'] / single['tokens/s']:.2f}"
