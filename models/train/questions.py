"""Questions about one picture, with the answer and what in the answer is scored.

Every function takes a generator and a `Picture` and returns a `Turn`, or None when the picture does not allow the
question (no such thing, or two readings are possible: a model must not be taught to guess).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .scene import Picture, Thing
from .vocabulary import COLORS, ICONS, NUMBERS, SHAPES, is_plural, with_article


@dataclass
class Turn:
    """task: row of the model card; fact: which words of the answer are compared (see facts.py); about: for "it"."""

    task: str
    question: str
    answer: str
    fact: str
    about: Thing | None = None


Ask = Callable[[random.Random, Picture], "Turn | None"]


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def phrase(thing: Thing, sized: bool) -> str:
    """With its article: "a small red circle", "a dog"."""
    if thing.kind == "icon":
        return with_article(thing.name)
    words = f"{thing.size} {thing.color} {thing.name}" if sized else f"{thing.color} {thing.name}"
    return with_article(words.strip())


def reference(rng: random.Random, picture: Picture, thing: Thing, without: str = "") -> str | None:
    """A definite name that fits this thing only: "the star", "the red star", "the red shape".

    without: "color" or "shape", not to be in the name.
    """
    if thing.kind == "icon":
        return f"the {thing.name}"
    shapes = picture.shapes
    options = []
    if without != "shape":
        if sum(t.name == thing.name for t in shapes) == 1:
            options += [f"the {thing.name}"] * 2
        if without != "color" and sum((t.name, t.color) == (thing.name, thing.color) for t in shapes) == 1:
            options.append(f"the {thing.color} {thing.name}")
        if picture.sized and sum((t.name, t.size) == (thing.name, thing.size) for t in shapes) == 1:
            options.append(f"the {thing.size} {thing.name}")
    if without != "color" and sum(t.color == thing.color for t in shapes) == 1:
        options.append(
            f"the {thing.color} {rng.choice(['shape', 'one'])}" if without == "shape" else f"the {thing.color} shape"
        )
    return rng.choice(options) if options else None


def spot(picture: Picture, thing: Thing, margin: float = 0.0) -> str | None:
    """Which ninth of the picture: "at the top left". None within `margin` (share of a side) of a border of a ninth."""
    cells = []
    for share in (thing.y / picture.height, thing.x / picture.width):
        if min(abs(share - 1 / 3), abs(share - 2 / 3)) < margin:
            return None
        cells.append(0 if share < 1 / 3 else 1 if share < 2 / 3 else 2)
    return [
        ["at the top left", "at the top", "at the top right"],
        ["on the left", "in the middle", "on the right"],
        ["at the bottom left", "at the bottom", "at the bottom right"],
    ][cells[0]][cells[1]]


def side_of(picture: Picture, a: Thing, b: Thing) -> str | None:
    """Where a lies as seen from b, when one direction clearly wins."""
    dx, dy = (a.x - b.x) / picture.width, (a.y - b.y) / picture.height
    if max(abs(dx), abs(dy)) < 0.14 or min(abs(dx), abs(dy)) > 0.6 * max(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def color(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.shapes:
        return None
    thing = rng.choice(picture.shapes)
    name = reference(rng, picture, thing, without="color")
    if name is None:
        return None
    question = rng.choice(
        [
            "What color is {}?",
            "What color is {}?",
            "Which color does {} have?",
            "What colour is {}?",
            "Tell me the color of {}.",
        ]
    ).format(name)
    if len(picture.things) == 1 and rng.random() < 0.3:
        question = rng.choice(["What color is the shape?", "What color is this?", "What color is it?"])
    return Turn("color", question, f"{name.capitalize()} is {thing.color}.", "color", thing)


def shape(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.shapes:
        return None
    thing = rng.choice(picture.shapes)
    if len(picture.things) == 1 and rng.random() < 0.5:
        question = rng.choice(["What shape is this?", "Which shape is in the picture?", "What shape do you see?"])
        return Turn("shape", question, f"It is {with_article(thing.name)}.", "shape", thing)
    if sum(t.color == thing.color for t in picture.shapes) != 1:
        return None
    c = thing.color
    question = rng.choice(
        [
            f"What shape is the {c} one?",
            f"Which shape is {c}?",
            f"What is the {c} thing?",
            f"What shape is {c}?",
            f"What is the {c} shape?",
        ]
    )
    return Turn("shape", question, f"The {c} shape is {with_article(thing.name)}.", "shape", thing)


def what(rng: random.Random, picture: Picture) -> Turn | None:
    """One thing alone: a shape with its colour, or the name of an icon."""
    if len(picture.things) != 1 or picture.prints:
        return None
    thing = picture.things[0]
    if thing.kind == "icon":
        question = rng.choice(
            [
                "What is this?",
                "What is in the picture?",
                "What do you see?",
                "What does this show?",
                "What does the picture show?",
                "Name the thing in the picture.",
                "What can you see?",
                "What's this?",
                "What is it?",
            ]
        )
        verb = "These are" if is_plural(thing.name) else "This is"
        return Turn("name", question, f"{verb} {with_article(thing.name)}.", "name", thing)
    question = rng.choice(
        [
            "What is this?",
            "What is in the picture?",
            "What do you see?",
            "What does this show?",
            "What can you see?",
            "What does the picture show?",
        ]
    )
    return Turn("describe one", question, f"{phrase(thing, picture.sized).capitalize()}.", "color shape", thing)


def size(rng: random.Random, picture: Picture) -> Turn | None:
    if len(picture.shapes) < 2:
        return None
    a, b = rng.sample(picture.shapes, 2)
    if picture.sized and rng.random() < 0.4:
        if any(t is not a and (t.name, t.color) == (a.name, a.color) for t in picture.shapes):
            return None
        name = f"the {a.color} {a.name}"
        question = rng.choice(["Is {} big or small?", "Is {} small or big?", "How big is {}?"]).format(name)
        return Turn("size", question, f"{name.capitalize()} is {a.size}.", "size", a)
    if max(a.radius, b.radius) < 1.35 * min(a.radius, b.radius):
        return None
    first, second = reference(rng, picture, a), reference(rng, picture, b)
    if not first or not second or first == second or "small" in first + second or "big" in first + second:
        return None
    bigger = rng.random() < 0.6
    winner = first if (a.radius > b.radius) == bigger else second
    word = rng.choice(["bigger", "larger"]) if bigger else "smaller"
    question = rng.choice([f"Which is {word}, {first} or {second}?", f"What is {word}: {first} or {second}?"])
    return Turn("size", question, f"{winner.capitalize()} is {word}.", "sentence", a)


def count(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.shapes or picture.icons:
        return None
    shapes = picture.shapes
    names, colors = Counter(t.name for t in shapes), Counter(t.color for t in shapes)
    roll = rng.random()
    if roll < 0.45:
        # Half the time the commonest kind, so that large numbers are as frequent as one.
        name = names.most_common(1)[0][0] if rng.random() < 0.6 else rng.choice(list(names))
        number, noun = names[name], name
        if rng.random() < 0.12:
            noun = rng.choice([s for s in SHAPES if s not in names])
            number = 0
    elif roll < 0.62:
        c = colors.most_common(1)[0][0] if rng.random() < 0.5 else rng.choice(list(colors))
        number, noun = colors[c], f"{c} shape"
    elif roll < 0.82:
        thing = rng.choice(shapes)
        number = sum((t.name, t.color) == (thing.name, thing.color) for t in shapes)
        noun = f"{thing.color} {thing.name}"
    else:
        number, noun = len(shapes), "shape"
    many = plural(noun)
    question = rng.choice(
        [
            "How many {} are there?",
            "How many {} do you see?",
            "How many {} are in the picture?",
            "Count the {}.",
            "How many {} can you see?",
            "How many {}?",
        ]
    ).format(many)
    verb, said = ("is", noun) if number == 1 else ("are", many)
    return Turn("count", question, f"There {verb} {NUMBERS[number]} {said}.", "number")


def place(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.shapes:
        return None
    thing = rng.choice(picture.shapes)
    name, where = reference(rng, picture, thing), spot(picture, thing, 0.05)
    if name is None or where is None:
        return None
    question = rng.choice(["Where is {}?", "Where in the picture is {}?", "Where do you see {}?"]).format(name)
    return Turn("place", question, f"{name.capitalize()} is {where}.", "place", thing)


def relation(rng: random.Random, picture: Picture) -> Turn | None:
    """Which of two sides."""
    if len(picture.things) < 2:
        return None
    a, b = rng.sample(picture.things, 2)
    side = side_of(picture, a, b)
    first, second = reference(rng, picture, a), reference(rng, picture, b)
    if side is None or not first or not second or first == second:
        return None
    choice = (
        ["left or right of", "right or left of", "to the left or to the right of"]
        if "the" in side
        else ["above or below", "below or above"]
    )
    form = rng.choice(
        [
            "Where is {a}, seen from {b}?",
            "Is {a} {choice} {b}?",
            "Is {a} {choice} {b}?",
            "On which side of {b} is {a}?",
            "Where is {a} relative to {b}?",
        ]
    )
    return Turn(
        "position",
        form.format(a=first, b=second, choice=rng.choice(choice)),
        f"{first.capitalize()} is {side} {second}.",
        "side",
        a,
    )


def neighbor(rng: random.Random, picture: Picture) -> Turn | None:
    """What is left of the star? With exactly two things, so there is one answer."""
    if len(picture.things) != 2:
        return None
    a, b = rng.sample(picture.things, 2)
    side, name = side_of(picture, a, b), reference(rng, picture, b)
    if side is None or name is None or a.name == b.name:
        return None
    verb = "are" if is_plural(a.name) else "is"
    question = rng.choice(["What is {side} {b}?", "Which thing is {side} {b}?"]).format(side=side, b=name)
    article = phrase(a, False)
    task = "position" if a.kind == "shape" else "name one of two"
    return Turn(
        task,
        question,
        f"{article.capitalize()} {verb} {side} {name}.",
        "name" if a.kind == "icon" else "color shape",
        a,
    )


def on_side(rng: random.Random, picture: Picture) -> Turn | None:
    """What is on the left? With two things."""
    if len(picture.things) != 2:
        return None
    a, b = rng.sample(picture.things, 2)
    side = side_of(picture, a, b)
    if side is None:
        return None
    where = {
        "to the left of": "on the left",
        "to the right of": "on the right",
        "above": "at the top",
        "below": "at the bottom",
    }[side]
    question = rng.choice(["What is {}?", "What do you see {}?", "Which thing is {}?"]).format(where)
    task = "position" if a.kind == "shape" else "name one of two"
    verb = "are" if is_plural(a.name) else "is"
    return Turn(
        task,
        question,
        f"{phrase(a, False).capitalize()} {verb} {where}.",
        "name" if a.kind == "icon" else "color shape",
        a,
    )


def exists(rng: random.Random, picture: Picture) -> Turn | None:
    """Is there a red circle? As often yes as no; a no differs in colour or in shape only."""
    if not picture.shapes:
        return None
    thing, yes = rng.choice(picture.shapes), rng.random() < 0.5
    c, s = thing.color, thing.name
    if not yes:
        if rng.random() < 0.5:
            c = rng.choice(list(COLORS))
        else:
            s = rng.choice(SHAPES)
    form = rng.random()
    if form < 0.25:
        noun, found = with_article(s), any(t.name == s for t in picture.shapes)
    elif form < 0.4:
        noun, found = f"{with_article(c)} shape", any(t.color == c for t in picture.shapes)
    else:
        noun, found = with_article(f"{c} {s}"), any((t.color, t.name) == (c, s) for t in picture.shapes)
    if found != yes:
        return None
    question = rng.choice(
        [
            "Is there {}?",
            "Is there {} in the picture?",
            "Do you see {}?",
            "Can you see {}?",
            "Does the picture show {}?",
        ]
    ).format(noun)
    bare = noun.split(" ", 1)[1]
    return Turn("yes/no", question, f"Yes, there is {noun}." if yes else f"No, there is no {bare}.", "yesno")


def check_color(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.shapes:
        return None
    thing = rng.choice(picture.shapes)
    name = reference(rng, picture, thing, without="color")
    if name is None:
        return None
    if rng.random() < 0.5:
        return Turn("yes/no", f"Is {name} {thing.color}?", f"Yes, it is {thing.color}.", "yesno", thing)
    # Wrong colours that are in the picture are the hard ones.
    near = [t.color for t in picture.shapes if t.color != thing.color]
    wrong = rng.choice(near) if near and rng.random() < 0.5 else rng.choice([c for c in COLORS if c != thing.color])
    return Turn("yes/no", f"Is {name} {wrong}?", f"No, it is {thing.color}.", "yesno", thing)


def check_side(rng: random.Random, picture: Picture) -> Turn | None:
    if len(picture.shapes) < 2:
        return None
    a, b = rng.sample(picture.shapes, 2)
    side, first, second = side_of(picture, a, b), reference(rng, picture, a), reference(rng, picture, b)
    if side is None or not first or not second or first == second:
        return None
    opposite = {
        "to the left of": "to the right of",
        "to the right of": "to the left of",
        "above": "below",
        "below": "above",
    }[side]
    yes = rng.random() < 0.5
    asked = side if yes else opposite
    if rng.random() < 0.3:
        asked = asked.replace("to the ", "")
    return Turn(
        "yes/no", f"Is {first} {asked} {second}?", f"{'Yes' if yes else 'No'}, it is {side} {second}.", "yesno", a
    )


def check_name(rng: random.Random, picture: Picture) -> Turn | None:
    if len(picture.icons) != 1 or len(picture.things) != 1:
        return None
    thing, yes = picture.icons[0], rng.random() < 0.5
    asked = thing.name if yes else rng.choice(list(ICONS))
    if (asked == thing.name) != yes:
        return None
    verb = "Are these" if is_plural(asked) else "Is this"
    true = with_article(thing.name)
    pronoun = "they are" if is_plural(thing.name) else "it is"
    return Turn(
        "yes/no about a name",
        f"{verb} {with_article(asked)}?",
        f"{'Yes' if yes else 'No'}, {pronoun} {true}.",
        "yesno",
        thing,
    )


def background(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.ground.color:
        return None
    question = rng.choice(
        ["What color is the background?", "Which color is the background?", "What is the color of the background?"]
    )
    return Turn("background", question, f"The background is {picture.ground.color}.", "color")


def read(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.prints:
        return None
    text = picture.prints[0].text
    if text.isdigit():
        question = rng.choice(
            [
                "Which number is this?",
                "What number do you see?",
                "Read the number.",
                "What does it say?",
                "What is written here?",
                "What number is in the picture?",
            ]
        )
        return Turn("number", question, f"The number is {text}.", "quote")
    question = rng.choice(
        [
            "What does it say?",
            "What is written here?",
            "Read the word.",
            "Which word is this?",
            "What word do you see?",
            "What does the picture say?",
            "Read the text.",
            "What is written in the picture?",
        ]
    )
    return Turn("word", question, f'It says "{text.upper()}".', "quote")


def print_color(rng: random.Random, picture: Picture) -> Turn | None:
    if not picture.prints:
        return None
    item = picture.prints[0]
    noun = "number" if item.text.isdigit() else rng.choice(["word", "text"])
    return Turn("color", f"What color is the {noun}?", f"The {noun} is {item.color}.", "color")


def describe(rng: random.Random, picture: Picture) -> Turn | None:
    """The whole picture in one or two sentences."""
    question = rng.choice(
        [
            "Describe the picture.",
            "What is in the picture?",
            "Describe what you see.",
            "What do you see?",
            "Describe this picture in detail.",
            "Tell me about this picture.",
            "What does the picture show?",
        ]
    )
    things = sorted(picture.things, key=lambda t: t.x)
    if len(things) == 1 and not picture.prints and not question.startswith(("Describe", "Tell")):
        return None
    on = f" on {with_article(picture.ground.color)} background" if picture.ground.color else ""
    if not things and not picture.prints:
        return Turn("describe", question, f"The picture is empty{on.replace(' on', ': just')}.", "sentence")
    parts = [f"{phrase(t, picture.sized)} {spot(picture, t)}" for t in things]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""
    if picture.prints:
        text = picture.prints[0]
        thing = f"the number {text.text}" if text.text.isdigit() else f'the word "{text.text.upper()}"'
        answer = f"The picture shows {thing} in {text.color}{on}."
        return Turn("describe", question, answer + (f" There is {listed}." if parts else ""), "sentence")
    if len(things) == 1:
        return Turn("describe", question, f"There is {parts[0]}{on}.", "sentence", things[0])
    noun = "shapes" if not picture.icons else "things"
    return Turn("describe", question, f"There are {NUMBERS[len(things)]} {noun}{on}: {listed}.", "sentence")


def missing(rng: random.Random, picture: Picture) -> Turn | None:
    """Asked about a thing that is not there."""
    absent = [s for s in SHAPES if all(t.name != s for t in picture.things)]
    if rng.random() < 0.35:
        absent = [
            n for n in rng.sample(list(ICONS), 3) if all(t.name != n for t in picture.things) and not is_plural(n)
        ]
    if not absent:
        return None
    name = rng.choice(absent)
    question = rng.choice(["What color is the {}?", "Where is the {}?", "How big is the {}?"]).format(name)
    return Turn("cannot tell", question, f"I do not see {with_article(name)} in the picture.", "refusal")


UNKNOWABLE = [
    "What is the name of the person?", "What time is it?", "Who made this picture?", "When was this picture taken?",
    "How much does it cost?", "Where was this picture taken?", "Who is this?", "What will happen next?",
    "What is the weather like there?", "How old is it?", "What does it smell like?", "How heavy is it?",
    "What is behind the camera?", "Who owns this?", "What is the phone number?", "What is the address?",
    "What happened before?", "What sound does it make?", "Why was it made?", "What is the temperature?",
    "How far away is it?", "What year is it?", "In which city is this?", "What language does she speak?",
]  # fmt: skip


def unknowable(rng: random.Random, picture: Picture) -> Turn | None:
    return Turn("cannot tell", rng.choice(UNKNOWABLE), "I cannot tell from the picture.", "refusal")


def follow_up(rng: random.Random, picture: Picture, thing: Thing) -> Turn | None:
    """A question that only makes sense after a turn about `thing`."""
    if thing.kind == "icon":
        return None
    roll = rng.random()
    if roll < 0.35:
        question = rng.choice(["What color is it?", "And what color is it?", "Which color is it?"])
        return Turn("follow-up", question, f"It is {thing.color}.", "color", thing)
    if roll < 0.65:
        where = spot(picture, thing, 0.05)
        question = rng.choice(["Where is it?", "And where is it?", "Where in the picture is it?"])
        return Turn("follow-up", question, f"It is {where}.", "place", thing) if where else None
    if roll < 0.8:
        question = rng.choice(["What shape is it?", "And what shape is it?", "What is it?"])
        return Turn("follow-up", question, f"It is {with_article(thing.name)}.", "shape", thing)
    others = [t for t in picture.shapes if t is not thing and sum(u.name == t.name for u in picture.shapes) == 1]
    if not others:
        return None
    other = rng.choice(others)
    return Turn(
        "follow-up", f"And what color is the {other.name}?", f"The {other.name} is {other.color}.", "color", other
    )


# How often each question is tried; one that does not fit the picture is passed over.
ASKS: list[tuple[Ask, float]] = [
    (what, 6), (read, 8), (describe, 2.5), (color, 3), (shape, 2.5), (count, 5), (relation, 2.5), (neighbor, 1.5),
    (on_side, 2), (place, 2), (exists, 2.5), (check_color, 1.5), (check_side, 2), (check_name, 1.2), (size, 2),
    (background, 0.8), (print_color, 1), (missing, 0.7), (unknowable, 0.4),
]  # fmt: skip


def next_turn(rng: random.Random, picture: Picture, last: Turn | None, asked: set[str]) -> Turn | None:
    """Another question about the picture, sometimes one that refers back. asked: earlier questions and answers."""
    if last is not None and last.about is not None and rng.random() < 0.3:
        turn = follow_up(rng, picture, last.about)
        if turn is not None and not {turn.question, turn.answer} & asked:
            return turn
    for _ in range(25):
        ask = rng.choices(_FUNCTIONS, cum_weights=_CUMULATIVE)[0]
        turn = ask(rng, picture)
        if turn is not None and not {turn.question, turn.answer} & asked:
            return turn
    return None


_FUNCTIONS = [ask for ask, _ in ASKS]
_CUMULATIVE = [sum(weight for _, weight in ASKS[: i + 1]) for i in range(len(ASKS))]
