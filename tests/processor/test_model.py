"""On the bundled model: the ids are those that transformers' own tokenizer and template give."""

from __future__ import annotations

from typing import Any

import pytest

from components.protocol import ImagePart, TextPart, Turn, UrlImage
from processor.detokenize import Detokenizer
from processor.model_files import ModelFiles, load
from processor.prompt import Prompter
from tests.model import MODEL

CONVERSATIONS: list[list[tuple[str, list[str | None]]]] = [
    [("user", ["What is this?"])],
    [("user", [None, "What is this?"])],
    [("system", ["Answer in one word."]), ("user", ["Which colour is it?", None])],
    [("user", [None, None, "Are they the same?"]), ("assistant", ["No."]), ("user", ["Why?\n\n", "  Tell me."])],
    [("user", ["\n\nLeading and trailing space \n"])],
    [("user", ["Grüße, 你好, مرحبا, 👩‍👩‍👧‍👦, e\u0301, \t\x00\x7f 12345 !?"])],
    [("user", [""])],
]


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return load(str(MODEL))


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_ids_equal_those_of_transformers(
    files: ModelFiles, theirs: Any, conversation: list[tuple[str, list[str | None]]]
) -> None:
    picture = ImagePart(image=UrlImage(url="https://example.invalid/"))
    turns = [
        Turn(role=role, parts=tuple(picture if part is None else TextPart(text=part) for part in parts))  # type: ignore[arg-type]
        for role, parts in conversation
    ]
    messages = [
        {
            "role": role,
            "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts],
        }
        for role, parts in conversation
    ]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    prompt = Prompter(files, files.max_context).prompt(turns)
    assert list(prompt.token_ids) == expected
    assert prompt.token_ids.count(files.image_token_id or -1) == len(prompt.images)


def test_text_equals_that_of_transformers(files: ModelFiles, theirs: Any) -> None:
    ids = theirs("A red circle, über the 你好 👍🏽. Two stars!")["input_ids"]
    detokenizer = Detokenizer(files.tokenizer)
    text = "".join(detokenizer.push([id]) for id in ids) + detokenizer.flush()
    assert text == theirs.decode(ids, skip_special_tokens=True)


def test_an_answer_ends_where_the_model_says(files: ModelFiles, theirs: Any) -> None:
    assert theirs.eos_token_id in files.stop_token_ids
