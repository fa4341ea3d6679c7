"""SGLang through our panels, beside its own prefill/decode split and one engine for all, on the same GPUs.

    triptych bench sglang [--gpus 1|2] [--json FILE] [--page FILE] [--plot FILE]

All stacks serve the same model of 7B dimensions with made-up weights, started with the same arguments, and answer the
same prompts with one picture each, greedily, to the same length, in turns. No prefix cache is on. The picture's
embedding is with the encode worker, and in the hands of the bare engines, before the clock starts; pictures that are
new are measured apart.

On one GPU of 80 GB three stacks of this size do not fit: the bare split is measured beside the panels first, then one
engine for all. Two GPUs hold all of them: prefill and encode on the first, decode on the second, and an engine for all
on each. Where no GPU is, ``--device cpu --size tiny`` rehearses it; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import io
import itertools
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from PIL import Image

from benchmarks import plot_serve, sglang_page
from benchmarks.chat import chat_body
from benchmarks.hops import hop_table
from benchmarks.sglang_load import in_turns, one_turn, percentile, summary, ttft
from benchmarks.sglang_stacks import BareSplit, Panels, Question, Stack, Whole, engines, panels
from benchmarks.sglang_task import EngineRole
from benchmarks.sized_model import SIZES, Size
from components.nixl_connect import cuda
from components.protocol import ImagePart, TextPart, Turn, UrlImage
from processor.model_files import load as load_files
from processor.prompt import Prompter

TEXT_TOKENS = 210
"""Of a prompt, the chat template's among them."""
FRESH, FRESH_TOKENS = 12, 8
"""New pictures, and the length of the answers about them."""
_MAX_CONTEXT = 32768
"""More than is asked: prefill's memory for embeddings is two prompts of this length, and holds those of 32 requests."""
_PATCH = 14
_GRAPHS = (1, 2, 4, 8, 16, 24)
"""Sizes of a batch for which decode has a graph, beside the largest."""


@dataclass(frozen=True)
class Place:
    """Where everything runs, and how much KV memory fits there, in tokens."""

    prefill: str
    decode: str
    whole: tuple[str, ...]
    prefill_kv: int
    decode_kv: int
    together: bool
    """All three stacks at the same time."""

    @classmethod
    def of(cls, device: str, gpus: int, kv_tokens: int | None) -> Place:
        first, last = (device, device) if device == "cpu" else ("cuda:0", f"cuda:{gpus - 1}")
        # On one GPU of 80 GB four engines leave little: ten requests run at a time there, the others wait.
        small = gpus == 1 and device != "cpu"
        decode_kv = kv_tokens or (16384 if small else 65536)
        prefill_kv = 24576 if small else 65536
        return cls(first, last, (first, last)[:gpus], prefill_kv, decode_kv, gpus > 1)


def topology(model: Path, place: Place, dtype: str, batch: int) -> dict[str, Any]:
    """``batch`` is the most requests that decode runs at a time."""
    arguments: dict[str, Any] = {"load_format": "dummy", "disable_radix_cache": True}
    graphs: dict[str, Any] = {}
    if place.decode != "cpu":
        graphs["cuda_graph_bs_decode"] = [*(size for size in _GRAPHS if size < batch), batch]
    return {
        "engine": "sglang",
        "drain_seconds": 5.0,
        "model": {"path": str(model), "name": "sized", "dtype": dtype, "max_context": _MAX_CONTEXT},
        "encode": {"device": place.prefill, "pool_bytes": "256MiB"},
        "prefill": {
            "device": place.prefill,
            "kv_tokens": place.prefill_kv,
            "max_batch_tokens": 4096,
            "engine_arguments": arguments,
        },
        "decode": {
            "device": place.decode,
            "kv_tokens": place.decode_kv,
            "max_batch": batch,
            "engine_arguments": arguments | graphs,
        },
    }


class Questions:
    """Prompts of one length and pictures of one size; no two texts are the same."""

    def __init__(self, model: Path, size: Size, tokens: int, seed: int = 1) -> None:
        self._size, self._tokens = size, tokens
        files = load_files(str(model))
        self._prompter = Prompter(files, _MAX_CONTEXT)
        encode = files.tokenizer.encode
        one_token = (
            text[1:]
            for text in sorted(files.tokenizer.get_vocab())
            if len(text) > 3 and text[0] == "Ġ" and text[1:].isascii() and text[1:].isalpha()
        )
        self._words = [word for word in one_token if len(encode(f" {word}", add_special_tokens=False).ids) == 1]
        self._random = np.random.default_rng(seed)
        self._picture = self.picture()
        self._length = TEXT_TOKENS - len(self._ids("")) + 1  # the placeholder is not text

    def question(self, picture: bytes, tokens: int) -> Question:
        text = "".join(f" {word}" for word in self._random.choice(self._words, self._length))
        body = chat_body("sized", picture, text, tokens)
        side = self._size.picture // _PATCH
        return Question(msgspec.json.encode(body), self._ids(text), (1, side, side))

    def same_picture(self) -> Iterator[Question]:
        """For ever: whoever has seen one of them has the embedding of all."""
        return (self.question(self._picture, self._tokens) for _ in itertools.repeat(None))

    def picture(self) -> bytes:
        """A PNG of random blocks, different each time."""
        blocks = self._random.integers(0, 256, (63, 63, 3), dtype=np.uint8)
        side = self._size.picture
        file = io.BytesIO()
        Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue()

    def _ids(self, text: str) -> list[int]:
        parts = (ImagePart(image=UrlImage(url="")), TextPart(text=text))
        return list(self._prompter.prompt([Turn(role="user", parts=parts)]).token_ids)


async def new_pictures(asked: Panels, questions: Questions) -> dict[str, Any]:
    """From sending a picture that nobody has seen to the first text, one at a time."""
    asking = [questions.question(questions.picture(), FRESH_TOKENS) for _ in range(FRESH)]
    timings = [await asked.ask(question, FRESH_TOKENS) for question in asking]
    first = [ttft(timing) for timing in timings]
    return {
        "requests": len(first),
        "ms p50": statistics.median(first),
        "ms p99": percentile(first, 99),
        "hops": hop_table([timing.hops for timing in timings]),
    }


class Run:
    """One run: what is measured goes into ``result``, and into the file each time something is added."""

    def __init__(self, options: argparse.Namespace, folder: Path, model: Path) -> None:
        """``folder`` is for settings and logs."""
        self._options, self._folder, self._model = options, folder, model
        self._place = Place.of(options.device, options.gpus, options.kv_tokens)
        self._size = SIZES[options.size]
        self._config = folder / "topology.yaml"
        self._began = time.perf_counter()
        self.result: dict[str, Any] = {"settings": {}, "points": []}

    async def measure(self) -> None:
        options, model = self._options, self._model
        await _write_model(model, options.size, self._place.prefill)
        admitted = self._place.decode_kv // (self._size.rows + TEXT_TOKENS + options.tokens)
        settings = topology(model, self._place, options.dtype, min(admitted, max(options.concurrency)))
        self._config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self._questions = Questions(model, self._size, options.tokens)
        self.result["settings"] = await self._settings()
        self._say("the model is written; everything starts")
        groups = [[self._split(), self._whole()]] if self._place.together else [[self._split()], [self._whole()]]
        async with contextlib.AsyncExitStack() as all_along:
            ours = panels(self._config, self._folder, options.start_seconds)
            starting = asyncio.create_task(self._started(all_along, ours))
            for group in groups:
                async with contextlib.AsyncExitStack() as meanwhile:
                    others = await asyncio.gather(*(self._started(meanwhile, each) for each in group))
                    await self._points([stack for stack in (await starting, *others) if stack is not None])
            self._say("measured; everything ends")

    async def _started(
        self, life: contextlib.AsyncExitStack, stack: contextlib.AbstractAsyncContextManager[Stack]
    ) -> Stack | None:
        """It answers, and is warm; None if it does not: the others are measured without it."""
        questions = self._questions.same_picture()
        try:
            started = await life.enter_async_context(stack)
            self._say(f"{started.name}: started")
            for _ in range(3):
                first = ttft(await started.ask(next(questions), self._options.tokens))
                self._say(f"{started.name}: first token after {first:.1f} ms")
        except Exception:  # noqa: BLE001 (whatever it is, it is said)
            self._say(f"left out:\n{traceback.format_exc()}")
            return None
        return started

    async def _points(self, stacks: Sequence[Stack]) -> None:
        options = self._options
        for at_once in options.concurrency:
            await self._try(f"{at_once} at once", self._point(stacks, at_once))
            for asked in stacks:
                if isinstance(asked, Panels) and "fresh" not in self.result:
                    await self._try("new pictures", self._fresh(asked))

    async def _point(self, stacks: Sequence[Stack], at_once: int) -> None:
        options, questions = self._options, self._questions.same_picture()
        if at_once > 1:  # kernels for batches are compiled when the first one comes
            warming = (one_turn(stack, questions, at_once, 4) for stack in stacks)
            await asyncio.gather(*warming, return_exceptions=True)  # what fails here fails below, and is said there
        turns = await in_turns(
            stacks,
            questions,
            at_once=at_once,
            tokens=options.tokens,
            seconds=options.seconds * len(stacks),
            # With one turn, nobody knows how far two of the same stack differ.
            at_least=2 if at_once == 1 else 1,
        )
        for name, found in turns.items():
            if found.failure:
                self._say(f"{name} failed:\n{found.failure}")
        numbers = {name: summary(found) for name, found in turns.items() if not found.failure}
        if at_once == 1 and Panels.name in numbers:
            known = [timing.hops for turn in turns[Panels.name].timings for timing in turn]
            self.result["known"] = {"requests": len(known), "hops": hop_table(known)}
        self.result["points"].append({"at once": at_once, "stacks": numbers})
        for name, each in numbers.items():
            self._say(sglang_page.row(name, at_once, each))

    async def _fresh(self, asked: Panels) -> None:
        self.result["fresh"] = await new_pictures(asked, self._questions)
        self._say(f"from a new picture to the first token: {self.result['fresh']['ms p50']:.1f} ms")

    async def _try(self, what: str, measuring: Coroutine[Any, Any, None]) -> None:
        """What fails is said, and the rest goes on."""
        try:
            await measuring
        except Exception:  # noqa: BLE001 (as above)
            self._say(f"{what} failed:\n{traceback.format_exc()}")
        if self._options.json:
            self._options.json.write_text(json.dumps(self.result, indent=1) + "\n")

    @contextlib.asynccontextmanager
    async def _split(self) -> AsyncIterator[Stack]:
        roles: list[tuple[EngineRole, str]] = [("prefill", self._place.prefill), ("decode", self._place.decode)]
        async with engines(roles, self._config, self._folder, self._options.start_seconds) as (prefill, decode):
            yield BareSplit(prefill, decode)

    @contextlib.asynccontextmanager
    async def _whole(self) -> AsyncIterator[Stack]:
        roles: list[tuple[EngineRole, str]] = [("whole", device) for device in self._place.whole]
        async with engines(roles, self._config, self._folder, self._options.start_seconds) as found:
            yield Whole(found)

    async def _settings(self) -> dict[str, Any]:
        options = self._options
        return {
            "gpus": options.gpus,
            "gpu": await _gpu() if options.device == "cuda" else platform.machine(),
            "sglang": version("sglang"),
            "size": options.size,
            "dtype": options.dtype,
            "tokens": options.tokens,
            "rows": self._size.rows,
            "prompt tokens": self._size.rows + TEXT_TOKENS,
            "kv tokens": self._place.decode_kv,
            "seconds": options.seconds,
            "load before": os.getloadavg()[0],
        }

    def _say(self, text: str) -> None:
        print(f"{time.perf_counter() - self._began:6.1f} s  {text}", flush=True)


async def _write_model(folder: Path, size: str, device: str) -> None:
    # In a process of its own: this one is to hold no memory of the GPU.
    command = [sys.executable, "-m", "benchmarks.sized_model", str(folder), "--size", size, "--device", device]
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise SystemExit("the model could not be written")


async def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    process = await asyncio.create_subprocess_exec(*query, stdout=asyncio.subprocess.PIPE)
    names, _ = await process.communicate()
    return names.decode().splitlines()[0]


async def _run(options: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    folder = (options.folder or temporary).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    run, this = Run(options, folder, temporary / "model"), asyncio.current_task()
    assert this is not None
    # Whoever ends this with SIGTERM, such as ``timeout``, still wants the GPU's memory back.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    await run.measure()
    return run.result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="triptych bench sglang", description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--dtype", help="default: bfloat16, on a CPU float32")
    parser.add_argument("--concurrency", type=int, nargs="+", default=(1, 8, 32), metavar="N", help="requests at once")
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--seconds", type=float, default=7.0, help="time for each stack at each concurrency")
    parser.add_argument("--start-seconds", type=float, default=150.0, help="longest time for a stack to start")
    parser.add_argument("--kv-tokens", type=int, help="KV memory for decode; default: what 80 GB hold")
    parser.add_argument("--folder", type=Path, help="where settings and logs stay; default: nowhere")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, as they come")
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    parser.add_argument("--plot", type=Path, help="draw the way of a request with a new picture as SVG")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("sglang") is None:
        sys.exit("SGLang is not installed here: docs/engines.md says how to")
    if options.device == "cuda" and cuda.driver() is None:
        sys.exit("no GPU here that could be used: --device cpu")
    # SGLang's own memory for rows on their way to its scheduler, 1 GiB by default; this holds those of 55 prompts.
    os.environ.setdefault("SGLANG_MM_FEATURE_CACHE_MB", "512")
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    with tempfile.TemporaryDirectory() as temporary:
        result = asyncio.run(_run(options, Path(temporary)))
    if not result["points"]:
        raise SystemExit("nothing was measured")
    print(sglang_page.section(result))
    if options.page:
        sglang_page.write(options.page, result)
    if options.plot and "fresh" in result:
        way = {"hops, alone": result["fresh"]["hops"], "settings": {"tokens": FRESH_TOKENS}}
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot_serve.draw(way))


if __name__ == "__main__":
    main()
