"""The bundled model's folder is what its scripts write, and its network is the one that was trained.

Whether it answers about the sample pictures is asked through a whole stack, in tests/e2e/test_http.py.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.train import conversation, exam
from models.train.architecture import SPECIAL_TOKENS, VOCAB_SIZE
from models.train.batch import Words
from models.train.export import export
from models.train.network import TinyVL
from models.train.parity import compare
from models.train.scene import GROUNDS, HELD_OUT_GROUND, HELD_OUT_STYLE, Kit
from models.train.vocabulary import ICONS, WORDS, held_out
from tests.model import MODEL

LARGEST = 25 << 20
"""Bytes of weights that plain git may carry."""


def icons() -> dict[str, list[int]]:
    return {name: [number] for number, name in enumerate(ICONS)}


def test_the_scripts_write_this_folder(tmp_path: Path) -> None:
    export(load_file(MODEL / "model.safetensors"), MODEL, tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {path.name for path in MODEL.iterdir()} - {"README.md"}
    for name in written - {"model.safetensors"}:
        assert (tmp_path / name).read_text() == (MODEL / name).read_text(), name


def test_the_weights_are_those_of_the_network() -> None:
    weights = load_file(MODEL / "model.safetensors")
    expected = {name: tuple(tensor.shape) for name, tensor in TinyVL().state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == expected
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert (MODEL / "model.safetensors").stat().st_size <= LARGEST


def test_the_network_computes_what_transformers_computes() -> None:
    assert compare(MODEL) < 1e-4


def test_the_tokenizer_knows_what_it_reads() -> None:
    words = Words(MODEL / "tokenizer.json")
    tokenizer = words.tokenizer
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    for token in SPECIAL_TOKENS:
        assert len(words.ids(token)) == 1, token
    for text in (f"Is this the {name}?" for name in ICONS):
        assert tokenizer.decode(words.ids(text)) == text
    # Capitals are spelled, so that letters are read and words not known by heart.
    assert len(words.ids("RIVER")) == len("RIVER")
    assert json.loads((MODEL / "config.json").read_text())["image_token_id"] == words.image_token


@pytest.mark.parametrize("task", ["color", "word", "name"])
def test_training_never_sees_what_the_exam_shows(task: str) -> None:
    unseen = Kit([0], icons(), unseen=True, plain_icons=True)
    for question in exam.paper(7, unseen, 20, [task]):
        for picture in question.pictures:
            assert picture.ground.kind == HELD_OUT_GROUND
            assert all(thing.style == HELD_OUT_STYLE for thing in picture.shapes)
            assert all(held_out(item.text.lower()) for item in picture.prints)


def test_training_leaves_them_out() -> None:
    rng, kit = random.Random(7), Kit([0], icons())
    pictures = [conversation.one_picture(rng, kit, (224, 224)).pictures[0] for _ in range(400)]
    assert {picture.ground.kind for picture in pictures} == set(GROUNDS) - {HELD_OUT_GROUND}
    assert HELD_OUT_STYLE not in {thing.style for picture in pictures for thing in picture.shapes}
    printed = {item.text.lower() for picture in pictures for item in picture.prints}
    assert printed & set(WORDS)
    assert not printed & {word for word in WORDS if held_out(word)}


def test_a_seed_gives_the_same_questions_whatever_else_is_asked() -> None:
    kit = Kit([0], icons())
    few, many = exam.paper(3, kit, 2, ["count"]), exam.paper(3, kit, 3, ["color", "count"])
    assert few == [question for question in many if question.task == "count"][:2]
