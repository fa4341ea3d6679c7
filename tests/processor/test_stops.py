from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from processor.stops import StopStrings


def run(chunks: list[str], stops: list[str]) -> tuple[str, bool]:
    finder = StopStrings(stops)
    text = "".join(finder.push(chunk) for chunk in chunks)
    return text + finder.flush(), finder.hit


def letter_by_letter(text: str, stops: list[str]) -> tuple[str, bool]:
    """What stop strings mean, in the plainest words."""
    for end in range(len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: min(found)], True
    return text, False


letters = st.text("ab\n", max_size=40)


@given(st.lists(letters, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4))
def test_means_the_same_however_the_text_is_cut(chunks: list[str], stops: list[str]) -> None:
    assert run(chunks, stops) == letter_by_letter("".join(chunks), stops)


@given(st.lists(letters, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4))
def test_nothing_is_held_that_cannot_become_a_stop(chunks: list[str], stops: list[str]) -> None:
    finder = StopStrings(stops)
    given_out = seen = ""
    for chunk in chunks:
        seen += chunk
        given_out += finder.push(chunk)
        if finder.hit:
            return
        held = seen[len(given_out) :]
        assert seen.startswith(given_out)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_across_tokens() -> None:
    finder = StopStrings(["\n\n", "END"])
    assert finder.push("a line\n") == "a line"
    assert finder.push("b E") == "\nb "
    assert finder.push("N") == ""
    assert finder.push("D and more") == ""
    assert finder.hit
    assert finder.push("never") == finder.flush() == ""


def test_without_stops_nothing_waits() -> None:
    finder = StopStrings([])
    assert finder.push("at once") == "at once"
