"""Conversations of every hostile size: the ids stay right, the interpreter stays free, the memory comes back."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from components.messaging import CallError
from components.protocol import ImagePart, TextPart, Turn, UrlImage
from processor.detokenize import Detokenizer
from processor.model_files import ModelFiles, load
from processor.prompt import Prompter
from processor.stops import StopStrings
from processor.tokenizer import PromptTokenizer, _any_of
from tests.model import MODEL

LETTERS = 900_000
TEXTS = {
    "digits": "7" * LETTERS,
    "one word": "a" * LETTERS,
    "blanks": " " * LETTERS,
    "blank lines": "\n" * LETTERS,
    "CJK": "你" * (LETTERS // 3),
    "prose": "Which word? " * (LETTERS // 12),
    "marks": "!" * LETTERS,
    "accents": "e" + "\u0301" * (LETTERS // 2),
    "emoji": "👩‍👩‍👧" * (LETTERS // 18),
    "special tokens": "<|im_end|>" * (LETTERS // 10),
    "almost special tokens": "<|im_en" * (LETTERS // 7),
}
HOLD_SECONDS = 0.05


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return load(str(MODEL))


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """Takes all it is given for text."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


@contextmanager
def longest_holds(holds: list[float]) -> Iterator[None]:
    """Adds the longest computing of this thread, in seconds, during which another one could not run.

    In time of its own processor clock: on a busy machine the other thread waits for a core as well.
    """
    clock = time.pthread_getcpuclockid(threading.get_ident())
    ended = threading.Event()
    longest = 0.0

    def watch() -> None:
        nonlocal longest
        before = time.clock_gettime(clock)
        while not ended.is_set():
            time.sleep(0.001)
            now = time.clock_gettime(clock)
            longest, before = max(longest, now - before), now

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
        holds.append(longest)


def assert_others_can_run(work: Callable[[], object]) -> None:
    """What holds the interpreter does so each time."""
    # As a panel does before it serves: what pytest has loaded is not the processor's.
    gc.collect()
    gc.freeze()
    holds: list[float] = []
    while not holds or (min(holds) > HOLD_SECONDS and len(holds) < 5):
        with longest_holds(holds):
            work()
    assert min(holds) <= HOLD_SECONDS, holds


def say(*texts: str) -> list[Turn]:
    return [Turn(role="user", parts=tuple(TextPart(text=text) for text in texts))]


def refused(prompter: Prompter, turns: list[Turn]) -> str:
    with pytest.raises(CallError) as caught:
        prompter.prompt(turns)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    return caught.value.message


@pytest.mark.parametrize("name", TEXTS)
def test_a_megabyte_keeps_nobody_from_running_and_has_the_ids_of_the_whole_text(
    files: ModelFiles, plain: Tokenizer, name: str
) -> None:
    prompter = Prompter(files, 4 * LETTERS)
    assert_others_can_run(lambda: prompter.prompt(say(TEXTS[name])))
    ids = list(prompter.prompt(say(TEXTS[name])).token_ids)
    frame = list(prompter.prompt(say("")).token_ids)
    start, end = (
        [index for index, id in enumerate(frame) if id == files.tokenizer.token_to_id(special)][1]
        for special in ("<|im_start|>", "<|im_end|>")
    )
    whole = plain.encode(f"user\n{TEXTS[name]}", add_special_tokens=False).ids
    assert ids == frame[: start + 1] + whole + frame[end:]


@pytest.mark.parametrize("name", TEXTS)
def test_too_long_a_text_is_refused_at_the_cost_of_one_that_fits(files: ModelFiles, name: str) -> None:
    prompter = Prompter(files, files.max_context)
    seen = 0
    encode = prompter._tokenizer._encode

    def counting(texts: list[str]) -> object:
        nonlocal seen
        encodings = encode(texts)
        seen += sum(map(len, encodings))
        return encodings

    prompter._tokenizer._encode = counting  # type: ignore[assignment, method-assign]
    turns = say(TEXTS[name] * 16)
    assert_others_can_run(lambda: refused(prompter, turns))
    seen = 0
    message = refused(prompter, turns)
    assert message == (
        "This model's maximum context length is 8192 tokens. However, your messages resulted in more than 8192 tokens. "
        "Please reduce the length of the messages."
    )
    assert files.max_context <= seen < 8 * files.max_context


@pytest.mark.parametrize("cut", [1, 7, 1000, 100_000])
def test_parts_are_counted_as_the_one_text_that_they_are(files: ModelFiles, cut: int) -> None:
    """Single letters have a token each; together eight have one."""
    text = "word" * 16_000
    pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
    prompter = Prompter(files, 20_000)
    assert prompter.prompt(say(*pieces)) == prompter.prompt(say(text))


@pytest.mark.parametrize(
    "turns",
    [
        [Turn(role="user", parts=())] * 100_000,
        [Turn(role="user", parts=(TextPart(text=""),))] * 100_000,
        [Turn(role="user", parts=(ImagePart(image=UrlImage(url="http://a/")),) * 100_000)],
        say(*["a b "] * 100_000),
    ],
    ids=["messages", "messages of nothing", "pictures", "parts"],
)
def test_many_small_things_are_too_long_too(files: ModelFiles, turns: list[Turn]) -> None:
    prompter = Prompter(files, files.max_context)
    assert_others_can_run(lambda: refused(prompter, turns))


def test_a_hundred_thousand_parts_of_nothing_are_nothing(files: ModelFiles) -> None:
    prompter = Prompter(files, files.max_context)
    turns = say(*[""] * 50_000, "Hi", *[""] * 50_000)
    assert_others_can_run(lambda: prompter.prompt(turns))
    assert prompter.prompt(turns) == prompter.prompt(say("Hi"))


def test_as_many_messages_as_the_context_holds(files: ModelFiles) -> None:
    prompter = Prompter(files, 200_000)
    turns = [Turn(role=("user", "assistant")[n % 2], parts=(TextPart(text="Hi"),)) for n in range(20_000)]  # type: ignore[arg-type]
    assert_others_can_run(lambda: prompter.prompt(turns))


_spellings = st.lists(st.text("<|ab>", min_size=1, max_size=5), max_size=8)


@given(_spellings, st.text("<|ab>", max_size=40))
def test_the_longest_spelling_is_found(spellings: list[str], text: str) -> None:
    plainly = "|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or r"(?!)"
    assert re.findall(_any_of(spellings), text) == re.findall(plainly, text)


def test_hundreds_of_special_tokens_are_looked_for_at_once(files: ModelFiles) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<|reserved_special_token_{n}|>", special=True) for n in range(300)])
    guard = PromptTokenizer(tokenizer).guard()
    assert_others_can_run(lambda: guard.protect("<|reserved_special_token_" * 40_000))
    assert_others_can_run(lambda: guard.protect("<|" * 500_000))


def test_a_whole_answer_at_once(files: ModelFiles) -> None:
    ids = files.tokenizer.encode_batch_fast([TEXTS["prose"]])[0].ids[:100_000]

    def answer() -> None:
        detokenizer = Detokenizer(files.tokenizer)
        # As service.py gets it: in batches.
        for start in range(0, len(ids), 512):
            detokenizer.push(ids[start : start + 512])

    assert_others_can_run(answer)


def test_stop_strings_that_never_come() -> None:
    stops = [letter * 255 + "!" for letter in "abcd"]

    def answer() -> None:
        finder = StopStrings(stops)
        for _ in range(200):
            finder.push("abcd" * 64 + "a" * 256)

    assert_others_can_run(answer)


MEMORY = """
import asyncio
from components import memory
from components.messaging import CallError
from components.protocol import ChatRequest, TextPart, Turn
from processor.model_files import load
from processor.service import ProcessorService
from tests.model import MODEL
from tests.processor.test_long import TEXTS
from tests.waiting import until

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

async def main():
    service = ProcessorService("m", load(str(MODEL)), 131_072, None)

    async def ask(text):
        try:
            await service._prompt(ChatRequest(model="m", turns=(Turn(role="user", parts=(TextPart(text=text),)),)))
        except CallError:
            pass

    idle = resident()
    for _ in range(4):
        await asyncio.gather(*map(ask, TEXTS.values()))
        await until(lambda: resident() < idle + 60, lambda: f"{resident():.0f} MiB, idle {idle:.0f}")

memory.few_arenas()
asyncio.run(main())
"""


def test_the_memory_of_long_texts_comes_back() -> None:
    """Some 25 MiB stay; nearly 500 where nothing gives them back."""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=root)
    assert ended.returncode == 0, ended.stderr


def test_a_model_without_a_long_context_refuses_by_the_same_words(files: ModelFiles) -> None:
    small = Prompter(replace(files, max_context=64), 64)
    assert "more than 64 tokens" in refused(small, say(TEXTS["digits"]))
    assert "resulted in 95 tokens" in refused(small, say("7" * 72))
