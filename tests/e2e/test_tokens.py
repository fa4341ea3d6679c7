"""Greedy tokens through the three panels are those of ``model.generate`` in one process."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from benchmarks.reference import Reference
from components.protocol import Sampling
from tests.e2e.conftest import Inside, hop

TOKENS = 24

WORDS = "What is in this picture? Describe it. How many things are there, and of which colour is the one on the left?"


@dataclass(frozen=True)
class Case:
    """A turn with ``len(sizes)`` pictures; ``seed`` makes text and pictures, ``words`` is the length of the text."""

    seed: int
    words: int
    sizes: tuple[tuple[int, int], ...] = field(default=())

    @property
    def text(self) -> str:
        random = np.random.default_rng(self.seed)
        return " ".join(random.choice(WORDS.split(), self.words))

    @property
    def pictures(self) -> list[bytes]:
        return [picture(self.seed * 10 + n, size) for n, size in enumerate(self.sizes)]


def picture(seed: int, size: tuple[int, int] = (224, 224)) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


SQUARE, WIDE, TALL = (224, 224), (320, 160), (120, 300)
CASES = [
    *(Case(seed, words) for seed, words in enumerate((1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 300, 400))),
    *(Case(20 + n, words, ((SQUARE, WIDE, TALL)[n % 3],)) for n, words in enumerate((1, 3, 8, 20, 50, 120, 250) * 2)),
    *(Case(40 + n, words, (SQUARE, WIDE, TALL)) for n, words in enumerate((1, 3, 8, 20, 50, 120, 250) * 2)),
]


def turn(reference: Reference, case: Case) -> tuple[list[dict[str, object]], list[int]]:
    """The conversation for the reference, and its token ids with one placeholder a picture."""
    parts = [{"type": "image"}] * len(case.sizes) + [{"type": "text", "text": case.text}]
    messages: list[dict[str, object]] = [{"role": "user", "content": parts}]
    prompt = reference.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return messages, reference.tokenizer(prompt, add_special_tokens=False)["input_ids"]


greedy = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)


async def test_forty_prompts_eight_at_a_time(inside: Inside, reference: Reference) -> None:
    assert len(CASES) >= 40
    (decode,) = inside.instances("decode").values()
    wrong = []
    for begin in range(0, len(CASES), 8):
        cases = CASES[begin : begin + 8]
        prompts = [turn(reference, case) for case in cases]
        answers = await asyncio.gather(
            *(
                inside.generate(decode, ids, case.pictures, greedy, model="tiny-vl")
                for case, (_, ids) in zip(cases, prompts, strict=True)
            )
        )
        for case, (messages, _), (tokens, _) in zip(cases, prompts, answers, strict=True):
            expected = reference.chat(messages, case.pictures, TOKENS).token_ids
            if tokens != expected:
                wrong.append((case, tokens, expected))
    assert not wrong
    await inside.idle()


async def test_one_at_a_time_and_the_stop_token_ends_it(inside: Inside, reference: Reference) -> None:
    (decode,) = inside.instances("decode").values()
    ends = reference.model.generation_config.eos_token_id
    stops = tuple(ends if isinstance(ends, list) else [ends])
    for case in (CASES[3], CASES[16], CASES[30]):
        messages, ids = turn(reference, case)
        expected = reference.chat(messages, case.pictures, 100, stop=True).token_ids
        sampling = Sampling(max_tokens=100, temperature=0.0, stop_token_ids=stops)
        tokens, done = await inside.generate(decode, ids, case.pictures, sampling, model="tiny-vl")
        assert tokens == expected
        assert done.finish_reason == ("length" if len(tokens) == 100 else "stop")
        assert done.usage.completion_tokens == len(tokens)


async def test_another_picture_changes_the_answer(inside: Inside, reference: Reference) -> None:
    (decode,) = inside.instances("decode").values()
    case = Case(1, 5, (SQUARE,))
    _, ids = turn(reference, case)
    answers = [(await inside.generate(decode, ids, [picture(seed)], greedy, model="tiny-vl"))[0] for seed in range(6)]
    assert len({tuple(answer) for answer in answers}) > 1


@pytest.mark.parametrize("sizes", [(), (SQUARE,), (SQUARE, WIDE, TALL)])
async def test_the_bytes_that_moved_are_shape_times_dtype(
    inside: Inside, reference: Reference, sizes: tuple[tuple[int, int], ...]
) -> None:
    (decode,) = inside.instances("decode").values()
    case = Case(77 + len(sizes), 5, sizes)  # pictures that encode does not know: those it would not read
    _, ids = turn(reference, case)
    _, done = await inside.generate(decode, ids, case.pictures, greedy, model="tiny-vl")

    config = reference.model.config.text_config
    float32 = 4
    assert sorted(each.bytes for each in hop(done.hops, "encode", "read image")) == sorted(map(len, case.pictures))
    read = sum(each.bytes for each in hop(done.hops, "prefill", "read embedding"))
    assert read == done.usage.image_tokens * config.hidden_size * float32
    assert (read > 0) == bool(sizes)
    head_dim = config.hidden_size // config.num_attention_heads
    token = config.num_hidden_layers * 2 * config.num_key_value_heads * head_dim * float32
    (written,) = hop(done.hops, "prefill", "write KV")
    assert written.bytes == done.usage.prompt_tokens * token
    assert done.usage.prompt_tokens == len(ids) - len(sizes) + done.usage.image_tokens
    assert written.lane
