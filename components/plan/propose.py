"""From costs to xEyPzD on GPUs of one kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from components.plan.costs import (
    Traffic,
    decode_step_bytes,
    decode_weight_bytes,
    encode_flops,
    kv_bytes_a_token,
    prefill_flops,
    prompt_tokens,
)
from components.plan.dimensions import Dimensions, PlanError

GB = 1e9
_MOST_WORKERS = 4096
_ROUNDS = 40
"""Of bisection: more than enough for a rate."""


@dataclass(frozen=True)
class Gpu:
    """Dense bf16 tera-operations a second, bytes of memory a second and in all, from the vendor's data sheet."""

    name: str
    tflops: float
    terabytes_per_second: float
    gigabytes: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312, 2.039, 80),
        Gpu("l40s", 362, 0.864, 48),
        Gpu("h100", 989, 3.35, 80),
        Gpu("h200", 989, 4.8, 141),
        Gpu("b200", 2250, 8.0, 180),
    )
}


@dataclass(frozen=True)
class Margins:
    """What of a data sheet is reached, and what is left free; measure your own with ``triptych bench serve``.

    compute    share of the operations that matrix products of that size reach
    bandwidth  share of the memory's speed that decode reaches
    load       busiest a panel may be: above it queues grow faster than traffic
    memory     share of the memory that weights and KV may have; the rest is activations and the driver
    """

    compute: float = 0.5
    bandwidth: float = 0.7
    load: float = 0.7
    memory: float = 0.9


@dataclass(frozen=True)
class Panel:
    """``busy``: GPU-seconds a second for encode and prefill; for decode the share of the batch that memory allows."""

    workers: int
    busy: float
    seconds: float
    """Encode: of one picture. Prefill: of one prompt. Decode: of one step, which is the ITL."""
    weight_bytes: int
    kv_tokens: int
    """What is left of one worker's memory, in tokens of KV; 0 for encode."""


@dataclass(frozen=True)
class Plan:
    encode: Panel
    prefill: Panel
    decode: Panel
    batch: float
    """Requests in one decode worker's step, on average."""

    @property
    def gpus(self) -> int:
        return self.encode.workers + self.prefill.workers + self.decode.workers

    @property
    def name(self) -> str:
        return f"E{self.encode.workers} P{self.prefill.workers} D{self.decode.workers}"

    @property
    def ttft(self) -> float:
        """Seconds to the first token with no queue and no transfer: pictures side by side, then the prompt."""
        return self.encode.seconds + self.prefill.seconds


def propose(model: Dimensions, gpu: Gpu, traffic: Traffic, itl: float, margins: Margins) -> Plan:
    """The fewest workers of each panel that hold ``traffic`` with steps of at most ``itl`` seconds.

    Raises ``PlanError`` if the model does not fit, or ``itl`` is less than reading the weights takes.
    """
    encode, prefill = _encode(model, gpu, traffic, margins), _prefill(model, gpu, traffic, margins)
    for workers in range(1, _MOST_WORKERS):
        found = _decode(model, gpu, traffic, margins, workers)
        if found is not None and found[0].seconds <= itl and found[0].busy <= margins.load:
            return Plan(encode, prefill, *found)
    floor = decode_weight_bytes(model) / (gpu.terabytes_per_second * 1e12 * margins.bandwidth)
    raise PlanError(
        f"no number of decode workers gives {itl * 1e3:g} ms a token on {gpu.name}: reading the weights alone takes "
        f"{floor * 1e3:.1f} ms; allow more (--itl), or split the model over GPUs (an engine with tensor parallelism)"
    )


def highest_rate(model: Dimensions, gpu: Gpu, traffic: Traffic, itl: float, margins: Margins, gpus: int) -> Traffic:
    """The most requests a second that fit on ``gpus``. Raises ``PlanError`` if not even the slightest traffic does."""
    least = propose(model, gpu, replace(traffic, rate=1e-6), itl, margins)
    if least.gpus > gpus:
        raise PlanError(f"{least.name} is the least there can be, and needs {least.gpus} GPUs, not {gpus}")
    low, high = 1e-6, 1.0
    while propose(model, gpu, replace(traffic, rate=high), itl, margins).gpus <= gpus:
        low, high = high, high * 2
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        fits = propose(model, gpu, replace(traffic, rate=middle), itl, margins).gpus <= gpus
        low, high = (middle, high) if fits else (low, middle)
    return replace(traffic, rate=low)


def _room(gpu: Gpu, margins: Margins, weights: int, who: str) -> float:
    """Bytes that are left beside the weights."""
    room = gpu.gigabytes * GB * margins.memory - weights
    if room <= 0:
        raise PlanError(
            f"{who}: the weights have {weights / GB:.1f} GB, {margins.memory:.0%} of one {gpu.name} is "
            f"{gpu.gigabytes * margins.memory:.0f} GB; split it over GPUs (an engine with tensor parallelism)"
        )
    return room


def _workers(busy: float, margins: Margins) -> int:
    return max(1, math.ceil(busy / margins.load))


def _encode(model: Dimensions, gpu: Gpu, traffic: Traffic, margins: Margins) -> Panel:
    weights = model.vision.parameters * model.value_bytes
    _room(gpu, margins, weights, "encode")
    seconds = encode_flops(model, traffic.width, traffic.height) / (gpu.tflops * 1e12 * margins.compute)
    seconds = seconds if traffic.images else 0.0
    busy = traffic.rate * traffic.images * seconds
    return Panel(_workers(busy, margins), busy, seconds, weights, 0)


def _prefill(model: Dimensions, gpu: Gpu, traffic: Traffic, margins: Margins) -> Panel:
    weights = model.language.parameters * model.value_bytes
    tokens = int(_room(gpu, margins, weights, "prefill") / kv_bytes_a_token(model))
    seconds = prefill_flops(model, prompt_tokens(model, traffic)) / (gpu.tflops * 1e12 * margins.compute)
    busy = traffic.rate * seconds
    return Panel(_workers(busy, margins), busy, seconds, weights, tokens)


def _decode(
    model: Dimensions, gpu: Gpu, traffic: Traffic, margins: Margins, workers: int
) -> tuple[Panel, float] | None:
    """A panel of that many, and its batch; None if the batch would grow for ever.

    Requests in the batch are arrivals x their stay (Little's law), and their stay is output x the step's time, which
    grows with the batch: b = r n (W + b c k) / B, so b = r n W / (B - r n c k), with r requests a second and worker,
    n tokens of output, W bytes of weights, c tokens of context on average, k bytes of KV a token, B bytes a second.
    """
    weights = model.language.parameters * model.value_bytes
    tokens = int(_room(gpu, margins, weights, "decode") / kv_bytes_a_token(model))
    context = prompt_tokens(model, traffic) + traffic.output_tokens / 2
    speed = gpu.terabytes_per_second * 1e12 * margins.bandwidth
    produced = traffic.rate / workers * traffic.output_tokens
    left = speed - produced * context * kv_bytes_a_token(model)
    if left <= 0:
        return None
    batch = produced * decode_weight_bytes(model) / left
    # A step is never less than one request's, however seldom requests come.
    seconds = decode_step_bytes(model, max(batch, 1.0), context) / speed
    # A request holds memory for all that it may grow to.
    busy = batch * (prompt_tokens(model, traffic) + traffic.output_tokens) / tokens
    return Panel(workers, busy, seconds, weights, tokens), batch
