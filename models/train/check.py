"""A quick exam during training: is every token of the answer the most likely one, given the right tokens before it?

Stricter than evaluate.py in one way (the exact sentence) and milder in another (no token depends on an earlier
mistake).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from .batch import LENGTH, Words, rope_positions, stack_drawings, tokens
from .conversation import SYSTEM, render
from .drawing import Fonts, drawing
from .exam import SIZE, paper
from .network import TinyVL
from .render import Atlas, normalize
from .render import render as draw
from .scene import Kit


class Check:
    def __init__(
        self, seed: int, per_task: int, words: Words, fonts: Fonts, kit: Kit, atlas: Atlas, device: torch.device
    ) -> None:
        questions = paper(seed, kit, per_task)
        self.tasks = [question.task for question in questions]
        ids = np.full((len(questions), LENGTH), words.pad, np.int64)
        answer = np.zeros((len(questions), LENGTH), bool)
        positions = np.zeros((3, len(questions), LENGTH), np.int64)
        pictures = []
        for row, question in enumerate(questions):
            talk = render(question.turns, question.pictures, SYSTEM, image_first=True)
            row_ids, row_answer, grids = tokens(words, talk, LENGTH)
            n = len(row_ids)
            ids[row, :n], answer[row, :n] = row_ids, row_answer
            positions[:, row, :n] = rope_positions(row_ids, grids, words.image_token)
            pictures += [drawing(picture, fonts) for picture in question.pictures]
        self.device = device
        self.ids, self.answer = torch.from_numpy(ids).to(device), torch.from_numpy(answer).to(device)
        self.positions = torch.from_numpy(positions).to(device)
        self.slots = torch.from_numpy(np.flatnonzero(ids.flatten() == words.image_token)).to(device)
        drawn = {key: torch.from_numpy(value).to(device) for key, value in stack_drawings(pictures).items()}
        self.pictures = torch.cat(
            [
                draw({key: value[i : i + 256] for key, value in drawn.items()}, SIZE, atlas)
                for i in range(0, len(pictures), 256)
            ]
        ).to(torch.uint8)

    @torch.no_grad()
    def measure(self, model: TinyVL) -> dict[str, float]:
        """Share of answers with every token right, by task."""
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = model(self.ids, self.positions, [normalize(self.pictures.float())], self.slots)
            target = self.answer[:, 1:]
            best = model.logits(hidden[:, :-1][target]).argmax(-1)
        wrong = torch.zeros_like(target)
        wrong[target] = best != self.ids[:, 1:][target]
        right: dict[str, list[bool]] = defaultdict(list)
        for task, bad in zip(self.tasks, wrong.any(1).tolist(), strict=True):
            right[task].append(not bad)
        return {task: sum(values) / len(values) for task, values in right.items()}
