"""What the benchmark of SGLang through our panels prints, and writes into a page between two lines
``<!-- measured: sglang, … -->``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.page import filled
from benchmarks.serve_page import hops

ADDED_MS, WHOLE_MS = 3.0, 130.0
"""What is wanted: first token beside the bare split's, one request at a time; and from a new picture to it."""

HEAD = [
    "| | at once | first token p50 | p99 | between tokens p50 | p99 | a token | tokens/s | requests |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
]


def write(page: Path, result: dict[str, Any]) -> None:
    """Into the place of that number of GPUs. Raises ``SystemExit`` if the page has none."""
    gpus = result["settings"]["gpus"]
    page.write_text(filled(page.read_text(), page, f"sglang, {gpus}", section(result)))


def row(name: str, at_once: int, numbers: dict[str, float]) -> str:
    return (
        f"| {name} | {at_once} | {numbers['ttft p50']:.1f} ms | {numbers['ttft p99']:.1f} ms | "
        f"{numbers['itl p50']:.2f} ms | {numbers['itl p99']:.2f} ms | {numbers['token p50']:.2f} ms | "
        f"{numbers['tokens/s']:.0f} | {numbers['requests']:.0f} |"
    )


def section(result: dict[str, Any]) -> str:
    settings = result["settings"]
    lines = [
        f"{settings['gpus']} x {settings['gpu']}, SGLang {settings['sglang']}, {settings['size']} dimensions, "
        f"{settings['dtype']}; prompts of {settings['prompt tokens']:,} tokens, {settings['rows']:,} of them of one "
        f"picture, {settings['tokens']} tokens an answer; KV memory of {settings['kv tokens']:,} tokens for decode. "
        "Rows of one group were measured in turns.",
        "",
        *HEAD,
    ]
    for point in result["points"]:
        lines += [row(name, point["at once"], numbers) for name, numbers in point["stacks"].items()]
    return "\n".join([*lines, "", *(f"- {verdict}" for verdict in verdicts(result)), *_fresh(result)])


def verdicts(result: dict[str, Any]) -> Iterator[str]:
    """What was wanted, and what was seen."""
    for point in result["points"]:
        if not {"panels", "bare split"} <= point["stacks"].keys():
            continue
        ours, bare, at_once = point["stacks"]["panels"], point["stacks"]["bare split"], point["at once"]
        added = ours["ttft p50"] - bare["ttft p50"]
        wanted = f" Wanted: less than {ADDED_MS:g} ms: {_met(added < ADDED_MS)}." if at_once == 1 else ""
        yield (
            f"{at_once} at once: panels add {added:+.2f} ms to the first token (turns of the bare split are up to "
            f"{bare['ttft spread']:.2f} ms apart).{wanted}"
        )
        longer = ours["token p50"] - bare["token p50"]
        spread = max(ours["token spread"], bare["token spread"])
        wanted = f" Wanted: nothing measurable: {_met(longer <= spread)}." if at_once == 1 else ""
        yield (
            f"{at_once} at once: panels add {longer:+.3f} ms to each token (turns of one stack are up to "
            f"{spread:.3f} ms apart).{wanted}"
        )
    if fresh := result.get("fresh"):
        whole = fresh["ms p50"]
        yield (
            f"From a new picture to the first token, one at a time: {whole:.1f} ms, median of {fresh['requests']}. "
            f"Wanted: at most {WHOLE_MS:g} ms: {_met(whole <= WHOLE_MS)}."
        )


def _met(met: bool) -> str:
    return "met" if met else "**not met**"


def _fresh(result: dict[str, Any]) -> list[str]:
    if "fresh" not in result:
        return []
    return ["", "Each hop of a request with a new picture, medians; hops overlap:", "", *hops(result["fresh"]["hops"])]
