"""From conversations to arrays: token ids, the three rotary positions, which tokens are learned from, what to draw."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from . import conversation
from .architecture import CELL
from .conversation import Conversation
from .drawing import Fonts, drawing
from .scene import Kit

LENGTH = 208
"""Tokens of a training row. A row with one 224-pixel picture has about 130 left for talk."""

OTHER_SIZES = [(252, 168), (168, 252), (252, 196), (196, 252)]
"""Widths and heights that some of the pictures have, one pair per step; all others are MAIN_SIZE."""

MAIN_SIZE = (224, 224)

# Rows of a chunk by kind. Fixed numbers, so that every step has arrays of the same shapes and compiles once.
ROWS = {"main": 74, "other": 14, "main_pair": 4, "other_pair": 1, "none": 3}
CHUNK = sum(ROWS.values())


class Words:
    """Token ids of texts, remembering those seen: conversations repeat."""

    def __init__(self, tokenizer: Path | str) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.image_token = self.tokenizer.token_to_id("<|image_pad|>")
        self.pad = self.tokenizer.token_to_id("<|endoftext|>")
        self._seen: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        known = self._seen.get(text)
        if known is None:
            known = self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(self._seen) < 300_000:
                self._seen[text] = known
        return known


def rope_positions(ids: list[int], grids: list[tuple[int, int]], image_token: int) -> np.ndarray:
    """M-RoPE positions [3, tokens] (time, height, width), as transformers' get_rope_index gives them.

    Text counts up equally on all three axes; the tokens of a picture stand still in time and spread over rows and
    columns; text after it goes on behind the larger of the two.

    grids: (rows, columns) of image tokens of each picture, in order.
    """
    out = np.empty((3, len(ids)), dtype=np.int64)
    at = position = picture = 0
    while at < len(ids):
        if ids[at] != image_token:
            end = at
            while end < len(ids) and ids[end] != image_token:
                end += 1
            out[:, at:end] = np.arange(position, position + end - at)
            at, position = end, position + end - at
            continue
        rows, columns = grids[picture]
        end = at + rows * columns
        out[0, at:end] = position
        out[1, at:end] = position + np.repeat(np.arange(rows), columns)
        out[2, at:end] = position + np.tile(np.arange(columns), rows)
        at, position, picture = end, position + max(rows, columns), picture + 1
    return out


def grid(width: int, height: int) -> tuple[int, int]:
    """(rows, columns) of image tokens."""
    return height // CELL, width // CELL


def tokens(words: Words, talk: Conversation, limit: int) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
    """Ids, which of them are answers, and the pictures' grids. Turns that would pass `limit` tokens are left out."""
    grids = [grid(picture.width, picture.height) for picture in talk.pictures]
    ids: list[int] = []
    answer: list[bool] = []
    turn_ids: list[int] = []
    turn_answer: list[bool] = []
    left = iter(grids)
    for text, said in talk.pieces:
        piece: list[int] = []
        for token in words.ids(text):
            if token == words.image_token:
                rows, columns = next(left)
                piece += [token] * (rows * columns)
            else:
                piece.append(token)
        turn_ids += piece
        turn_answer += [said] * len(piece)
        if text == "\n" or not ids:
            if len(ids) + len(turn_ids) > limit:
                break
            ids, answer = ids + turn_ids, answer + turn_answer
            turn_ids, turn_answer = [], []
    return ids, answer, grids


@dataclass
class Chunk:
    """Some rows of a training step, ready to be stacked with others. Pictures: main size first, then the other size.

    ids, answer: [rows, LENGTH]; positions: [3, rows, LENGTH]; slots: [image tokens] places in ids.flatten() in the
    order of the pictures; main, other: drawing arrays of the pictures of both sizes, see drawing.py; other_size:
    (width, height).
    """

    ids: np.ndarray
    answer: np.ndarray
    positions: np.ndarray
    slots_main: np.ndarray
    slots_other: np.ndarray
    main: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    other_size: tuple[int, int]


def stack_drawings(pictures: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([p[key] for p in pictures]) for key in pictures[0]}


def make_chunk(rng: random.Random, words: Words, fonts: Fonts, kit: Kit, other: tuple[int, int]) -> Chunk:
    """CHUNK conversations; other: (width, height) of the pictures that are not MAIN_SIZE."""
    ids = np.full((CHUNK, LENGTH), words.pad, np.int64)
    answer = np.zeros((CHUNK, LENGTH), bool)
    positions = np.zeros((3, CHUNK, LENGTH), np.int64)
    slots: dict[bool, list[np.ndarray]] = {True: [], False: []}
    drawn: dict[bool, list[dict[str, np.ndarray]]] = {True: [], False: []}
    makers = {
        "main": lambda: conversation.one_picture(rng, kit, MAIN_SIZE),
        "other": lambda: conversation.one_picture(rng, kit, other),
        "main_pair": lambda: conversation.two_pictures(rng, kit, MAIN_SIZE),
        "other_pair": lambda: conversation.two_pictures(rng, kit, other),
        "none": lambda: conversation.no_picture(rng),
    }
    for row, kind in enumerate(kind for kind, count in ROWS.items() for _ in range(count)):
        row_answer: list[bool] = []
        while not any(row_answer):
            talk = makers[kind]()
            row_ids, row_answer, grids = tokens(words, talk, LENGTH)
        n, is_main = len(row_ids), not kind.startswith("other")
        ids[row, :n], answer[row, :n] = row_ids, row_answer
        positions[:, row, :n] = rope_positions(row_ids, grids, words.image_token)
        slots[is_main].append(row * LENGTH + np.flatnonzero(ids[row] == words.image_token))
        drawn[is_main] += [drawing(picture, fonts) for picture in talk.pictures]
    return Chunk(
        ids,
        answer,
        positions,
        np.concatenate(slots[True]),
        np.concatenate(slots[False]),
        stack_drawings(drawn[True]),
        stack_drawings(drawn[False]),
        other,
    )


def join(chunks: list[Chunk]) -> Chunk:
    """One step's worth of rows."""
    shift = [index * CHUNK * LENGTH for index in range(len(chunks))]
    return Chunk(
        np.concatenate([c.ids for c in chunks]),
        np.concatenate([c.answer for c in chunks]),
        np.concatenate([c.positions for c in chunks], 1),
        np.concatenate([c.slots_main + s for c, s in zip(chunks, shift, strict=True)]),
        np.concatenate([c.slots_other + s for c, s in zip(chunks, shift, strict=True)]),
        {key: np.concatenate([c.main[key] for c in chunks]) for key in chunks[0].main},
        {key: np.concatenate([c.other[key] for c in chunks]) for key in chunks[0].other},
        chunks[0].other_size,
    )
