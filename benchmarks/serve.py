"""The whole service under load, beside ``model.generate`` of the same model in one process, in the same run.

    triptych bench serve [--url URL] [--json FILE] [--page FILE] [--plot FILE]

Both sides answer the same questions about the same pictures, greedily, with as many CPU threads for each model, in
turns, so that both see the same machine. No picture is sent twice: neither side may remember an embedding.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from benchmarks import plot_serve, serve_page
from benchmarks.chat import chat_body
from benchmarks.hops import hop_table
from benchmarks.reference import Reference
from benchmarks.stack import running_stack
from components.config import Topology, load

QUESTIONS = (
    "Describe the picture.",
    "What is the biggest thing you see, and what colour is it?",
    "How many things are there, and where are they?",
    "Is there a circle? Where is it, and what is next to it?",
)


@dataclass(frozen=True)
class Question:
    text: str
    png: bytes


@dataclass
class Timing:
    """Seconds from sending to the first token and to the last; ``tokens`` generated."""

    first: float
    total: float
    tokens: int
    hops: list[dict[str, Any]] = field(default_factory=list)


def questions(count: int, seed: int, size: int = 224) -> list[Question]:
    """Pictures of random blocks, every one different; what is in them does not matter for the time."""
    random = np.random.default_rng(seed)
    result = []
    for index in range(count):
        blocks = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)
        file = io.BytesIO()
        picture.save(file, "PNG")
        result.append(Question(QUESTIONS[index % len(QUESTIONS)], file.getvalue()))
    return result


async def ask(client: httpx2.AsyncClient, model: str, question: Question, tokens: int) -> Timing:
    """One streamed request over HTTP."""
    body = chat_body(model, question.png, question.text, tokens)
    began = time.perf_counter()
    first = 0.0
    usage: dict[str, Any] = {}
    hops: list[dict[str, Any]] = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if not first and '"content":"' in line and '"content":""' not in line:
                first = time.perf_counter() - began
            if '"usage":{' in line or '"triptych"' in line:
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                hops = chunk.get("triptych", {}).get("hops", hops)
    return Timing(first, time.perf_counter() - began, usage["completion_tokens"], hops)


async def measure(url: str, topology: Topology, *, rounds: int, tokens: int, at_once: int, seed: int) -> dict[str, Any]:
    """Alternate: one question to the reference, one to us; then ``at_once`` to us together; ``rounds`` times."""
    reference = Reference(topology.model.path, threads=topology.decode.threads)
    alone: list[Timing] = []
    process: list[Timing] = []
    together: list[tuple[float, list[Timing]]] = []
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=httpx2.Limits(max_connections=at_once)) as client:
        stock = iter(questions((rounds + 1) * (2 + at_once), seed))
        for round in range(rounds + 1):
            mine, theirs = next(stock), next(stock)
            ours = await ask(client, topology.model.name, mine, tokens)
            single = await asyncio.to_thread(reference.answer, theirs.text, theirs.png, tokens)
            began = time.perf_counter()
            crowd = await asyncio.gather(
                *(ask(client, topology.model.name, next(stock), tokens) for _ in range(at_once))
            )
            elapsed = time.perf_counter() - began
            if round == 0:
                continue  # the first round warms both sides up
            alone.append(ours)
            process.append(Timing(single.first, single.total, single.tokens))
            together.append((elapsed, crowd))
            print(f"  round {round} of {rounds}", flush=True)
    return summary(alone, process, together, at_once)


def summary(
    alone: Sequence[Timing], process: Sequence[Timing], together: Sequence[tuple[float, list[Timing]]], at_once: int
) -> dict[str, Any]:
    def first(timings: Sequence[Timing]) -> float:
        return statistics.median(timing.first for timing in timings) * 1e3

    def rate(timings: Sequence[Timing]) -> float:
        return statistics.median(timing.tokens / timing.total for timing in timings)

    crowd = [timing for _, timings in together for timing in timings]
    total = statistics.median(sum(t.tokens for t in timings) / elapsed for elapsed, timings in together)
    return {
        "one process": {"first token ms": first(process), "tokens/s": rate(process)},
        "three panels, alone": {"first token ms": first(alone), "tokens/s": rate(alone)},
        f"three panels, {at_once} at once": {"first token ms": first(crowd), "tokens/s": total},
        "first token, over one process, ms": first(alone) - first(process),
        "tokens/s alone, ratio to one process": rate(alone) / rate(process),
        f"tokens/s with {at_once} at once, ratio to one process": total / rate(process),
        "hops, alone": hop_table([timing.hops for timing in alone]),
        "hops, together": hop_table([timing.hops for timing in crowd]),
    }


def report(result: dict[str, Any]) -> str:
    lines = [f"{'':<34}{'first token':>14}{'tokens/s':>12}"]
    for name, row in result.items():
        if isinstance(row, dict) and name != "settings":
            lines.append(f"{name:<34}{row['first token ms']:>11.1f} ms{row['tokens/s']:>12.0f}")
    lines += [f"{name}: {value:.2f}" for name, value in result.items() if isinstance(value, float)]
    for name in ("hops, alone", "hops, together"):
        lines += ["", f"{name}: {'ms':>38} {'bytes':>10}  lane"]
        lines += [
            f"  {row['stage']:<10} {row['name']:<28} {row['ms']:>8.2f} {row['bytes']:>10}  {row['lane']}"
            for row in result[name]
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="triptych bench serve", description=__doc__.partition("\n")[0])
    parser.add_argument("-c", "--config", type=Path, help="topology to start (default: one of each role)")
    parser.add_argument("--url", help="measure a running server instead of starting one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    parser.add_argument("--plot", type=Path, help="draw each hop's time as SVG")
    options = parser.parse_args(arguments)
    topology = load(options.config)
    load_before = " ".join(f"{load:.2f}" for load in os.getloadavg())
    measuring = {
        "rounds": options.rounds,
        "tokens": options.tokens,
        "at_once": options.at_once,
        "seed": options.seed,
    }
    if options.url:
        try:
            result = asyncio.run(measure(options.url, topology, **measuring))
        except httpx2.HTTPError as error:
            sys.exit(f"{options.url}: {error or type(error).__name__}")
    else:
        with running_stack(options.config) as stack:
            result = asyncio.run(measure(stack.url, topology, **measuring))
    result["settings"] = {
        **measuring,
        "threads": topology.decode.threads,
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_before": load_before,
    }
    print(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.page:
        serve_page.write(options.page, result)
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot_serve.draw(result))
