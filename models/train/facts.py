"""Compare an answer with the right one by what it claims, not by its wording."""

from __future__ import annotations

import re

from .vocabulary import COLORS, ICONS, NUMBERS, SHAPES

PLACES = ["top", "bottom", "left", "right", "middle"]
SIDES = ["left of", "right of", "above", "below"]


def words_in(text: str, words: list[str]) -> frozenset[str]:
    """Which of these words occur, alone or in the plural."""
    return frozenset(word for word in words if re.search(rf"\b{re.escape(word)}(s|es)?\b", text))


def longest_name(text: str) -> str:
    """The icon name in a text; of several the longest, so that "polar bear" is not "bear"."""
    found = [name for name in ICONS if re.search(rf"\b{re.escape(name)}\b", text)]
    return max(found, key=len, default="")


def claim(text: str, fact: str) -> object:
    """What a text says about a fact (see questions.Turn.fact), in a form that can be compared."""
    lower = text.lower().strip()
    if fact == "color":
        return words_in(lower, list(COLORS))
    if fact == "shape":
        return words_in(lower, SHAPES)
    if fact == "color shape":
        return words_in(lower, list(COLORS)), words_in(lower, SHAPES)
    if fact == "number":
        return words_in(lower, NUMBERS)
    if fact == "size":
        return words_in(lower, ["small", "big"])
    if fact == "side":
        return words_in(lower, SIDES)
    if fact == "place":
        return words_in(lower, PLACES)
    if fact == "order":
        return words_in(lower, ["first", "second"])
    if fact == "yesno":
        return lower.split(",")[0]
    if fact == "name":
        return longest_name(lower)
    if fact == "quote":
        quoted = re.findall(r'"([^"]*)"', text)
        return quoted[0] if quoted else "".join(re.findall(r"\d", text))
    if fact == "refusal":
        return "cannot tell" in lower or "do not see" in lower
    return re.sub(r"\W+", " ", lower)


def agrees(answer: str, right: str, fact: str) -> bool:
    return claim(answer, fact) == claim(right, fact)
