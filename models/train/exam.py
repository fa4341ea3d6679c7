"""Questions for measuring: a fixed number per task, one question each, from pictures that training never shows.

Unseen are: the drawing style (hatched shapes on woven backgrounds), the fonts, the printed words, the icon set, and of
course the scenes themselves.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import conversation, questions, scene, talk
from .questions import Turn
from .scene import Kit, Picture

SIZE = (224, 224)


@dataclass
class Question:
    """pictures and turns of a conversation whose last turn is scored; the earlier ones are given."""

    task: str
    pictures: list[Picture]
    turns: list[Turn]


def _scene(rng: random.Random, kit: Kit) -> Picture:
    roll = rng.random()
    if roll < 0.45:
        return scene.shapes_scene(rng, kit, rng.randint(1, 6), *SIZE)
    return scene.count_scene(rng, kit, *SIZE) if roll < 0.75 else scene.shapes_scene(rng, kit, 2, *SIZE)


def _ask(ask: questions.Ask, rng: random.Random, picture: Picture, task: str) -> list[Turn] | None:
    turn = ask(rng, picture)
    return [turn] if turn is not None and turn.task == task else None


def _follow(rng: random.Random, picture: Picture) -> list[Turn] | None:
    first = rng.choice([questions.color, questions.shape, questions.place])(rng, picture)
    if first is None or first.about is None:
        return None
    second = questions.follow_up(rng, picture, first.about)
    return [first, second] if second is not None and second.answer.split()[-1] not in first.answer else None


SHAPE_TASKS: dict[str, list[questions.Ask]] = {
    "color": [questions.color],
    "shape": [questions.shape],
    "size": [questions.size],
    "count": [questions.count],
    "position": [questions.relation, questions.neighbor, questions.on_side],
    "place": [questions.place],
    "yes/no": [questions.exists, questions.check_color, questions.check_side],
    "background": [questions.background],
    "cannot tell": [questions.missing, questions.unknowable],
    "describe": [questions.describe],
}

TASKS = [*SHAPE_TASKS, "follow-up", "two pictures", "number", "word", "name", "yes/no about a name", "talk"]


def question(rng: random.Random, kit: Kit, task: str) -> Question:
    """One question of a task. Draws again until picture and question fit."""
    while True:
        if task == "talk":
            return Question(task, [], [talk.without_picture(rng)])
        if task == "two pictures":
            pictures = [conversation.simple_picture(rng, kit, *SIZE) for _ in range(2)]
            turn = talk.two_pictures(rng, *pictures)
            # Names and words in an unseen style have rows of their own.
            if turn.fact in ("sentence", "quote", "name") or "word" in turn.answer:
                continue
            return Question(task, pictures, [turn])
        if task in ("name", "yes/no about a name"):
            picture = scene.icon_scene(rng, kit, 1, *SIZE)
            turns = _ask(questions.what if task == "name" else questions.check_name, rng, picture, task)
        elif task in ("word", "number"):
            picture = scene.print_scene(rng, kit, task == "number", *SIZE)
            turns = _ask(questions.read, rng, picture, task)
        else:
            picture = _scene(rng, kit)
            turns = (
                _follow(rng, picture)
                if task == "follow-up"
                else _ask(rng.choice(SHAPE_TASKS[task]), rng, picture, task)
            )
        if turns is not None:
            return Question(task, [picture], turns)


def paper(seed: int, kit: Kit, per_task: int, tasks: list[str] | None = None) -> list[Question]:
    """The same questions for the same seed, whatever the other tasks are."""
    return [
        question(random.Random(f"exam/{seed}/{task}/{number}"), kit, task)
        for task in tasks or TASKS
        for number in range(per_task)
    ]
