"""The table that the transfer benchmark writes into a page, between that page's marks, and what must hold.

A page has a mark before and one after the place, both ``<!-- measured: HERE,THERE -->``, a place for each pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import filled
from benchmarks.plot_transfer import size_text, time_text
from benchmarks.transfer_points import KIB, MIB

HOST_RATIO, HOST_ADDED_US, LOOP_US, DYNAMO_TIMES = 1.25, 150.0, 1000.0, 10.0
"""Of raw NIXL from 1 MiB up; beside it at 64 KiB; the longest step of the event loop at p99.9; dynamo at 1 MiB."""
GPU_SHARE, GPU_ADDED_US, COPY_SHARE = 0.95, 60.0, 0.75
"""Of raw NIXL's bandwidth from 64 MiB up; beside raw at 4 MiB; of a plain copy's bandwidth at 64 MiB."""


def write(page: Path, result: dict[str, Any]) -> None:
    """Raises ``SystemExit`` if the page has no place for a pair."""
    text = page.read_text()
    for pair in dict.fromkeys((line["here"], line["there"]) for line in result["compared"]):
        lines = [line for line in result["compared"] if (line["here"], line["there"]) == pair]
        text = filled(text, page, ",".join(pair), section(result, lines))
    page.write_text(text)


def section(result: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    machine, loop = result["machine"], result["event_loop"]
    parts = [
        f"`{result['command']}`, {result['seconds']:.0f} s; {machine['cpus']} cores of {machine['processor']}; "
        f"load before the run {result['load_before']}"
        + (f"; {result['others']:.0%} of the cores' time went to others." if result["others"] is not None else "."),
        "",
        table(lines),
        "",
        *verdict(lines),
        *gpu_verdict(lines, [row for row in result["rows"] if row["what"] == "copy"]),
        f"- Event loop: of {loop['steps']:,} steps the 99.9th percentile took {loop['p999_us']:,.0f} µs, "
        f"the longest {loop['max_us']:,.0f} µs; in processor time {loop['cpu_p999_us']:,.0f} and "
        f"{loop['cpu_max_us']:,.0f} µs (wanted: at most {LOOP_US:,.0f} µs at 99.9 %).",
    ]
    idle = [row for row in result["rows"] if row["what"] == "idle"]
    parts += [f"- Idle with {row['leases']} leases: {row['share_of_a_core']:.2%} of a core." for row in idle]
    return "\n".join(parts)


def table(lines: Sequence[dict[str, Any]]) -> str:
    theirs = any("dynamo_us" in line for line in lines)
    head = ["", "bytes", "buffers", "in flight", "raw p50", "p99", "Triptych p50", "p99", "added", "ratio", "rounds"]
    head += ["dynamo p50", "p99", "times slower"] if theirs else []
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for line in lines:
        cells = [line["kind"] + (f", {line['label']}" if line["label"] else ""), size_text(line["size"])]
        cells += [str(line["buffers"]), str(line["in_flight"])]
        cells += [time_text(line[key] / 1e6) for key in ("raw_us", "raw_p99_us", "ours_us", "ours_p99_us")]
        cells += [f"{line['added_us']:+,.0f} µs", f"{line['ratio']:.2f}", str(line["n"])]
        if "dynamo_us" in line:
            cells += [time_text(line["dynamo_us"] / 1e6), time_text(line["dynamo_p99_us"] / 1e6)]
            cells.append(f"{line['times_faster']:.0f}")
        elif theirs:
            cells += ["", "", ""]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def verdict(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Whether the targets for host memory hold, point by point."""
    lines = [line for line in lines if line["here"] == line["there"] == "cpu"]
    large = [line for line in lines if line["size"] >= MIB]
    small = [line for line in lines if line["size"] == 64 * KIB and line["in_flight"] == 1]
    at_1_mib = [line for line in lines if line["size"] == MIB and "times_faster" in line]
    parts = []
    if large:
        missed = [line for line in large if line["ratio"] > HOST_RATIO]
        parts.append(
            f"- From 1 MiB up: {len(large) - len(missed)} of {len(large)} medians are within {HOST_RATIO} of raw NIXL's"
            + ("; not: " + ", ".join(_name(line) for line in missed) if missed else "")
            + "."
        )
    for line in small:
        parts.append(f"- {_name(line)}: {line['added_us']:+,.0f} µs (wanted: at most {HOST_ADDED_US:+,.0f} µs).")
    for line in at_1_mib:
        parts.append(f"- {_name(line)}: {line['times_faster']:.0f} times as fast as dynamo (wanted: {DYNAMO_TIMES:g}).")
    return parts


def gpu_verdict(lines: Sequence[dict[str, Any]], copies: Sequence[dict[str, Any]]) -> list[str]:
    """The same for transfers between GPUs."""
    lines = [line for line in lines if "cpu" not in (line["here"], line["there"])]
    parts = []
    for line in lines:
        name, share = _name(line), 1 / line["ratio"]
        if line["size"] >= 64 * MIB:
            parts.append(f"- {name}: {share:.0%} of raw NIXL's bandwidth (wanted: {GPU_SHARE:.0%}).")
        elif line["size"] == 4 * MIB and line["in_flight"] == 1:
            parts.append(f"- {name}: {line['added_us']:+,.0f} µs (wanted: at most {GPU_ADDED_US:+,.0f} µs).")
        for copy in copies:
            same = (line["here"], line["there"], line["size"]) == (copy["here"], copy["there"], copy["size"])
            if same and line["size"] == 64 * MIB and line["buffers"] == 1:
                share = copy["p50_us"] * line["in_flight"] / line["ours_us"]
                parts.append(f"- {name}: {share:.0%} of a plain copy's bandwidth (wanted: {COPY_SHARE:.0%}).")
    return parts


def _name(line: dict[str, Any]) -> str:
    name = f"{line['kind']} of {size_text(line['size'])}"
    name += f" in {line['buffers']} buffers" if line["buffers"] > 1 else ""
    return name + (f", {line['in_flight']} in flight" if line["in_flight"] > 1 else "")
