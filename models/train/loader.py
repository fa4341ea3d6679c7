"""Worker processes that write conversations while the GPU trains.

Step s always consists of the chunks (seed, s, 0), (seed, s, 1), ...: the data do not depend on the number of workers,
and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import random
from dataclasses import dataclass
from pathlib import Path
from queue import Full

from .batch import Chunk, Words, join, make_chunk
from .drawing import Fonts
from .scene import Kit


@dataclass(frozen=True)
class Recipe:
    """What decides the data. chunks: chunks in a step; other_sizes: taken in turn, one a step, see batch.py."""

    seed: int
    chunks: int
    other_sizes: list[tuple[int, int]]
    tokenizer: Path
    fonts: Fonts
    kit: Kit

    def step(self, words: Words, number: int) -> Chunk:
        other = self.other_sizes[number % len(self.other_sizes)]
        return join(
            [
                make_chunk(random.Random(f"{self.seed}/{number}/{part}"), words, self.fonts, self.kit, other)
                for part in range(self.chunks)
            ]
        )


def work(queue: mp.Queue, recipe: Recipe, first: int, stride: int) -> None:
    """Fill `queue` with the steps first, first + stride, first + 2 stride, ..."""
    words, number, parent = Words(recipe.tokenizer), first, os.getppid()
    while True:
        ready = number, recipe.step(words, number)
        while True:
            try:
                queue.put(ready, timeout=5)
                break
            except Full:
                # An orphan must not outlive the training process.
                if os.getppid() != parent:
                    return
        number += stride


class Loader:
    """The steps from `start` on, in order, made by `workers` processes."""

    def __init__(self, recipe: Recipe, start: int, workers: int) -> None:
        context = mp.get_context("spawn")
        self.queues = [context.Queue(maxsize=3) for _ in range(workers)]
        self.processes = [
            context.Process(target=work, daemon=True, args=(queue, recipe, start + w, workers))
            for w, queue in enumerate(self.queues)
        ]
        for process in self.processes:
            process.start()
        self.step, self.start = start, start

    def next(self) -> Chunk:
        step, chunk = self.queues[(self.step - self.start) % len(self.queues)].get(timeout=120)
        assert step == self.step
        self.step += 1
        return chunk

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
