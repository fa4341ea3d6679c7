"""Whole conversations: which pictures, which turns, in the chat template's words.

A conversation is a list of pieces, each either a picture's place or text that is read or text that is to be said.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from . import questions, scene, talk
from .questions import Turn
from .scene import Kit, Picture
from .vocabulary import COLORS, ICONS, SHAPES, with_article

SYSTEM = "You are a helpful assistant."
OTHER_SYSTEMS = [
    "You are a helpful assistant that answers questions about pictures.",
    "Answer briefly.",
    "You are Triptych.",
    "You are an assistant. Answer in one sentence.",
    "",
]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass
class Conversation:
    """pieces: (text, is_answer); one IMAGE marker stands for each of `pictures`, in order."""

    pieces: list[tuple[str, bool]]
    pictures: list[Picture] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


def render(turns: list[Turn], pictures: list[Picture], system: str, image_first: bool) -> Conversation:
    pieces = [(f"<|im_start|>system\n{system}<|im_end|>\n", False)]
    for index, turn in enumerate(turns):
        images = IMAGE * len(pictures) if index == 0 else ""
        content = images + turn.question if image_first else turn.question + images
        pieces.append((f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces.append((f"{turn.answer}<|im_end|>", True))
        pieces.append(("\n", False))
    return Conversation(pieces, pictures, turns)


def about_one(rng: random.Random, picture: Picture, limit: int) -> list[Turn]:
    """Up to `limit` turns about a picture; what it shows decides how many there are to ask."""
    turns: list[Turn] = []
    asked: set[str] = set()
    last: Turn | None = None
    while len(turns) < limit:
        if turns and rng.random() < 0.03:
            turns.append(talk.small_talk(rng))
            continue
        last = questions.next_turn(rng, picture, last, asked)
        if last is None:
            break
        asked |= {last.question, last.answer}
        turns.append(last)
    return turns


def simple_picture(rng: random.Random, kit: Kit, width: int, height: int) -> Picture:
    """One of a pair: little in it, so that a short sentence says it all."""
    roll = rng.random()
    if roll < 0.35:
        return scene.shapes_scene(rng, kit, 1, width, height)
    if roll < 0.6:
        return scene.shapes_scene(rng, kit, rng.randint(2, 6), width, height)
    if roll < 0.85:
        return scene.icon_scene(rng, kit, 1, width, height)
    return scene.print_scene(rng, kit, rng.random() < 0.5, width, height)


def opening(rng: random.Random) -> tuple[str, bool]:
    """The system message, and whether pictures stand before the first question."""
    return SYSTEM if rng.random() < 0.85 else rng.choice(OTHER_SYSTEMS), rng.random() < 0.5


def no_picture(rng: random.Random) -> Conversation:
    turns = [talk.without_picture(rng) for _ in range(rng.randint(1, 4))]
    return render(turns, [], *opening(rng))


def two_pictures(rng: random.Random, kit: Kit, size: tuple[int, int]) -> Conversation:
    pictures = [simple_picture(rng, kit, *size) for _ in range(2)]
    turns: list[Turn] = []
    for _ in range(rng.randint(1, 3)):
        turn = talk.two_pictures(rng, *pictures)
        if all(turn.answer != other.answer for other in turns):
            turns.append(turn)
    return render(turns, pictures, *opening(rng))


def one_picture(rng: random.Random, kit: Kit, size: tuple[int, int], limit: int = 6) -> Conversation:
    while True:
        picture = scene.random_picture(rng, kit, *size)
        turns = about_one(rng, picture, limit)
        if turns:
            return render(turns, [picture], *opening(rng))


def sample_text(rng: random.Random) -> str:
    """Only the words of a training conversation, for the tokenizer: no sprites needed."""
    kit = Kit(fonts=[0], icons={name: [0] for name in ICONS})
    size = (224, 224)
    talk_of = rng.choice([no_picture(rng), two_pictures(rng, kit, size), one_picture(rng, kit, size)])
    words = "\n".join(text for text, _ in talk_of.pieces)
    extra = rng.choice(list(COLORS)) + " " + rng.choice(SHAPES) + ", " + with_article(rng.choice(list(ICONS))) + "."
    for marker in ("<|im_start|>", "<|im_end|>", IMAGE):
        words = words.replace(marker, " ")
    # Printed words are spelled, see tokenizer.py.
    return "\n".join(line for line in words.splitlines() if not _has_capitals(line)) + "\n" + extra


def _has_capitals(line: str) -> bool:
    return any(a.isupper() and b.isupper() for a, b in itertools.pairwise(line) if a.isascii())
