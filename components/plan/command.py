"""``triptych plan``."""

from __future__ import annotations

import json as jsonlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from components.plan.costs import (
    Traffic,
    decode_weight_bytes,
    embedding_bytes,
    encode_flops,
    kv_bytes_a_token,
    prefill_flops,
    prompt_tokens,
)
from components.plan.dimensions import Dimensions, PlanError, read
from components.plan.propose import GB, GPUS, Gpu, Margins, Plan, highest_rate, propose


@dataclass(frozen=True)
class Request:
    """As it stands on the command line: ``size`` is ``WIDTHxHEIGHT``, ``itl`` in seconds."""

    rate: float
    images: int
    size: str
    text: int
    output: int
    itl: float

    @property
    def traffic(self) -> Traffic:
        """Raises ``PlanError``."""
        sides = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", self.size)
        if sides is None:
            raise PlanError(f"size {self.size!r} is not WIDTHxHEIGHT in pixels, such as 1280x720")
        if self.rate <= 0 or self.itl <= 0:
            raise PlanError("rate and itl are more than zero")
        return Traffic(self.rate, self.images, int(sides[1]), int(sides[2]), self.text, self.output)


def main(path: Path, gpu: str, gpus: int | None, request: Request, *, json: bool) -> int | str:
    """What ``sys.exit`` takes: 0, or what is wrong."""
    if gpu not in GPUS:
        return f"no such GPU: {gpu} (there are {', '.join(GPUS)})"
    try:
        plan(path, GPUS[gpu], request.traffic, request.itl, gpus, Margins(), json=json)
    except PlanError as error:
        return str(error)
    return 0


def plan(path: Path, gpu: Gpu, traffic: Traffic, itl: float, gpus: int | None, margins: Margins, *, json: bool) -> None:
    """Prints the split and its arithmetic; with ``gpus`` for the highest rate that they hold. Raises ``PlanError``."""
    model = read(path)
    if gpus is not None:
        traffic = highest_rate(model, gpu, traffic, itl, margins, gpus)
    found = propose(model, gpu, traffic, itl, margins)
    if json:
        print(jsonlib.dumps(_numbers(model, gpu, traffic, found), indent=1))
    else:
        _show(model, gpu, traffic, found, margins, Console())


def _numbers(model: Dimensions, gpu: Gpu, traffic: Traffic, found: Plan) -> dict[str, object]:
    return {
        "split": found.name,
        "gpus": found.gpus,
        "gpu": asdict(gpu),
        "traffic": asdict(traffic),
        "kv_bytes_a_token": kv_bytes_a_token(model),
        "prompt_tokens": prompt_tokens(model, traffic),
        "ttft_seconds": found.ttft,
        "itl_seconds": found.decode.seconds,
        "batch": found.batch,
        "panels": {name: asdict(getattr(found, name)) for name in ("encode", "prefill", "decode")},
    }


def _show(model: Dimensions, gpu: Gpu, traffic: Traffic, found: Plan, margins: Margins, console: Console) -> None:
    tokens = prompt_tokens(model, traffic)
    picture = model.vision.tokens(traffic.width, traffic.height)
    kv = kv_bytes_a_token(model)
    language = model.language
    parts = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("model", f"{model.name}: {language.parameters / 1e9:.2f} G + vision {model.vision.parameters / 1e9:.2f} G"),
        ("traffic", f"{traffic.rate:.3g}/s, {traffic.images} x {traffic.width}x{traffic.height}, {traffic.text_tokens} "
         f"text tokens, {traffic.output_tokens} of output"),
        ("prompt", f"{traffic.text_tokens} + {traffic.images} x {picture} = {tokens:,} tokens"),
        ("KV", f"2 x {language.layers} layers x {language.kv_heads} heads x {language.head_dim} x "
         f"{model.value_bytes} B = {kv:,} B a token; {tokens * kv / 1e6:.1f} MB move for a prompt"),
        ("embeddings", f"{embedding_bytes(model, traffic) / 1e6:.2f} MB move for a request"),
        ("encode", f"{encode_flops(model, traffic.width, traffic.height) / 1e12:.2f} TFLOP a picture / "
         f"({gpu.tflops:g} TFLOP/s x {margins.compute:g}) = {found.encode.seconds * 1e3:.1f} ms"),
        ("prefill", f"{prefill_flops(model, tokens) / 1e12:.2f} TFLOP a prompt / ({gpu.tflops:g} TFLOP/s x "
         f"{margins.compute:g}) = {found.prefill.seconds * 1e3:.1f} ms"),
        ("decode", f"({decode_weight_bytes(model) / GB:.2f} GB of weights + {max(found.batch, 1):.1f} requests x their "
         f"KV) / ({gpu.terabytes_per_second:g} TB/s x {margins.bandwidth:g}) = {found.decode.seconds * 1e3:.1f} ms "
         "a step"),
    ]  # fmt: skip
    for name, text in rows:
        parts.add_row(name, text)
    console.print(parts)
    split = Table("panel", "GPUs", "busy", "weights", "KV room a worker", box=None, pad_edge=False)
    for name in ("encode", "prefill", "decode"):
        panel = getattr(found, name)
        room = f"{panel.kv_tokens:,} tokens" if panel.kv_tokens else ""
        busy = f"{panel.busy if name == 'decode' else panel.busy / panel.workers:.0%}"
        split.add_row(name, str(panel.workers), busy, f"{panel.weight_bytes / GB:.1f} GB", room)
    console.print(split)
    console.print(
        f"{found.name}: {found.gpus} GPUs; first token after {found.ttft * 1e3:.0f} ms, then one each "
        f"{found.decode.seconds * 1e3:.1f} ms, without queues and transfers",
        style="bold",
        highlight=False,
    )
    console.print("an estimate from data sheets: `triptych bench serve` on the real thing decides", style="dim")
