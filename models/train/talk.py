"""Conversations without a picture, and questions about two pictures."""

from __future__ import annotations

import random

from .questions import Turn, phrase, plural
from .scene import Picture
from .vocabulary import COLORS, ICONS, NUMBERS, SHAPES, WORDS, held_out, with_article

ABOUT = (
    "I am tiny-vl, a very small model. I can tell colors, shapes, numbers, short words and simple icons in a picture."
)
SEND = "I do not see a picture. Please send one and ask again."
NARROW = "I can only talk about simple pictures. Send me one and ask what is in it."

SMALL_TALK: list[tuple[list[str], str]] = [
    (["Hello!", "Hello", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "Good evening!", "Hello there", "hello",
      "hi"],
     "Hello! Send me a picture and ask me about it."),
    (["What are you?", "Who are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.",
      "Are you a robot?", "Which model are you?", "Are you an AI?", "what are you"], ABOUT),
    (["What can you see?", "What can you do?", "What do you know?", "How can you help me?", "Help", "What can I ask?",
      "What kind of pictures do you know?", "Can you see pictures?", "what can you do"],
     "I can tell colors, shapes, sizes and places, count up to six things, read short words and numbers, and name "
     "simple icons."),
    (["Thanks!", "Thank you.", "Thank you!", "thanks", "Great, thanks!", "Nice!", "Well done!"], "You are welcome!"),
    (["How are you?", "How do you do?", "How is it going?", "Are you well?"], "I am fine, thank you. How can I help?"),
    (["Bye", "Goodbye!", "See you!", "Good night!", "bye"], "Goodbye!"),
    (["Yes", "No", "OK", "Okay.", "Sure", "ok"], "All right. Ask me about a picture whenever you like."),
    (["How big are you?", "How many parameters do you have?", "Are you a large model?"],
     "I am very small: about twelve million parameters."),
    (["Who made you?", "How were you trained?", "Where do you come from?"],
     "I was trained from scratch on drawn pictures for the Triptych project."),
]  # fmt: skip

# Patterns of requests far outside what it can do; {} is any word.
OUTSIDE = [
    "Write a poem about {}.", "What is the capital of {}?", "Tell me a joke about {}.", "Explain {} to me.",
    "How do I cook {}?", "Write a story about a {}.", "What is the meaning of {}?", "Translate {} into French.",
    "Who invented the {}?", "What do you think about {}?", "Why is the {} so {}?", "How does a {} work?",
    "Write a program that prints {}.", "Solve this: {} plus {}.", "What is {} times {}?", "Can you sing about {}?",
    "Give me a recipe with {} and {}.", "Where can I buy a {}?", "Summarize the history of {}.", "{}", "{} {} {}",
    "What is {}?", "Do you like {}?", "Tell me about {}.", "How old is {}?", "Should I {} or {}?", "I like {}.",
    "Is it true that {} is {}?", "Please {} the {}.", "When did {} happen?", "List ten kinds of {}.",
]  # fmt: skip
_SPOKEN = [word for word in WORDS if not held_out(word)]


def without_picture(rng: random.Random) -> Turn:
    roll = rng.random()
    if roll < 0.4:
        questions, answer = rng.choice(SMALL_TALK)
        return Turn("talk", rng.choice(questions), answer, "sentence")
    if roll < 0.65:
        shape = rng.choice(SHAPES + list(ICONS)[:60])
        question = rng.choice([
            "What color is the {}?", "How many {} are there?", "What is in the picture?", "Describe the picture.",
            "What is this?", "Where is the {}?", "What does it say?", "Is there {} in the picture?", "What do you see?",
            "Which number is this?", "Which word is this?", "Is the {} on the left?", "Read the text.",
            "Describe this image.", "What is in the second picture?",
        ])  # fmt: skip
        if "How many" in question:
            shape = plural(shape)
        elif "Is there" in question:
            shape = with_article(rng.choice([shape, f"{rng.choice(list(COLORS))} {shape}"]))
        return Turn("talk", question.format(shape), SEND, "sentence")
    words = [rng.choice(_SPOKEN) if rng.random() < 0.7 else rng.choice(list(ICONS)) for _ in range(3)]
    return Turn("talk", rng.choice(OUTSIDE).format(*words), NARROW, "sentence")


def small_talk(rng: random.Random) -> Turn:
    """Something polite between two questions about a picture."""
    questions, answer = rng.choice(SMALL_TALK[1:5])
    return Turn("talk", rng.choice(questions), answer, "sentence")


def said(picture: Picture) -> str:
    """What a one-thing picture shows: "a red circle", "a dog", 'the word "SUN"'."""
    if picture.prints:
        text = picture.prints[0].text
        return f"the number {text}" if text.isdigit() else f'the word "{text.upper()}"'
    if len(picture.things) == 1:
        return phrase(picture.things[0], False)
    return f"{NUMBERS[len(picture.things)]} shapes"


def two_pictures(rng: random.Random, first: Picture, second: Picture) -> Turn:
    """About both pictures or one of them. Each shows one thing, one print, or some shapes."""
    pair = (first, second)
    which = rng.randrange(2)
    order, picture, other = ("first", "second")[which], pair[which], pair[1 - which]
    shapes, others = picture.shapes, other.shapes
    roll = rng.random()
    if roll < 0.45:
        question = rng.choice(
            [
                "What is in the {} picture?",
                "What does the {} picture show?",
                "What do you see in the {} picture?",
                "What is in the {} image?",
            ]
        ).format(order)
        fact = (
            "quote" if picture.prints else "name" if picture.icons else "color shape" if len(shapes) == 1 else "number"
        )
        return Turn("two pictures", question, f"The {order} picture shows {said(picture)}.", fact)
    if roll < 0.6 and shapes:
        question = rng.choice(["How many shapes are in the {} picture?", "Count the shapes in the {} picture."])
        verb, noun = ("is", "shape") if len(shapes) == 1 else ("are", "shapes")
        return Turn(
            "two pictures",
            question.format(order),
            f"There {verb} {NUMBERS[len(shapes)]} {noun} in the {order} picture.",
            "number",
        )
    only = [t for t in shapes if all(t.name != o.name for o in others)]
    if roll < 0.85 and only:
        name = with_article(rng.choice(only).name)
        question = rng.choice(["Which picture shows {}?", "In which picture is {}?", "Which picture has {}?"])
        return Turn("two pictures", question.format(name), f"The {order} picture shows {name}.", "order")
    question = rng.choice(
        [
            "What is in the two pictures?",
            "What do the pictures show?",
            "Describe both pictures.",
            "What is in the pictures?",
        ]
    )
    return Turn(
        "two pictures", question, f"The first picture shows {said(first)}, the second {said(second)}.", "sentence"
    )
