"""The benchmark of SGLang through our panels: what it makes of timings, and what it measures with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import sglang_load, sglang_page
from benchmarks.sglang_engine import arguments as bare_arguments
from benchmarks.sglang_load import Turns, in_turns, percentile, summary
from benchmarks.sglang_split import Place, Questions, topology
from benchmarks.sglang_stacks import Question, Timing
from benchmarks.sized_model import SIZES, write
from components.config import Topology
from components.engines.sglang.arguments import Arguments
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.encode import TransformersEncodeEngine
from components.engines.transformers.pixels import Patches
from processor.detokenize import Detokenizer
from processor.model_files import load

TINY = SIZES["tiny"]
QUESTION = Question(b"", [], (1, 2, 2))


def timing(first: float, gap: float, tokens: int = 5, prompt: int = 10) -> Timing:
    return Timing(1.0, [1.0 + first + gap * n for n in range(tokens)], prompt, tokens)


class Always:
    """A stack that says the same each time, and who was asked when."""

    def __init__(self, name: str, answer: Timing, order: list[str]) -> None:
        self.name, self._answer, self._order = name, answer, order
        self.asking = self.most = 0

    async def ask(self, question: Question, tokens: int) -> Timing:
        self._order.append(self.name)
        self.asking += 1
        self.most = max(self.most, self.asking)
        await asyncio.sleep(0)
        self.asking -= 1
        return self._answer


def same() -> Iterator[Question]:
    while True:
        yield QUESTION


def test_times_are_of_the_first_token_of_gaps_and_of_tokens() -> None:
    turns = Turns([[timing(0.050, 0.010), timing(0.060, 0.010)], [timing(0.080, 0.020)]], [0.5, 0.5])
    numbers = summary(turns)
    assert numbers["ttft p50"] == pytest.approx(60) and numbers["ttft p99"] == pytest.approx(80)
    assert numbers["ttft spread"] == pytest.approx(25)  # 55 and 80
    assert numbers["itl p50"] == pytest.approx(10) and numbers["itl p99"] == pytest.approx(20)
    assert numbers["token spread"] == pytest.approx(10)
    assert numbers["tokens/s"] == pytest.approx(15)


def test_tokens_that_come_together_do_not_shorten_the_time_a_token() -> None:
    apart, pairs = timing(0.05, 0.01, tokens=5), Timing(1.0, [1.05, 1.07, 1.09], 10, 5)
    assert sglang_load.per_token(apart) == pytest.approx(sglang_load.per_token(pairs))


def test_the_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 99), percentile(values, 50), percentile([7.0], 99)) == (99, 50, 7)


@pytest.mark.parametrize(("at_once", "requests"), [(1, 3), (4, 8)])
async def test_stacks_take_turns_and_each_begins_one(at_once: int, requests: int) -> None:
    order: list[str] = []
    stacks = [Always(name, timing(0.05, 0.01), order) for name in ("a", "b")]
    found = await in_turns(stacks, same(), at_once=at_once, tokens=5, seconds=0, at_least=2)
    assert "".join(order) == "a" * requests + "b" * 2 * requests + "a" * requests
    assert [len(turn) for turn in found["a"].timings] == [requests, requests]
    assert all(stack.most == at_once for stack in stacks)


async def test_stacks_that_did_other_work_are_not_compared() -> None:
    stacks = [Always("a", timing(0.05, 0.01), []), Always("b", timing(0.05, 0.01, tokens=4), [])]
    with pytest.raises(RuntimeError, match="different lengths"):
        await in_turns(stacks, same(), at_once=1, tokens=5, seconds=0)


class Broken:
    name = "broken"

    async def ask(self, question: Question, tokens: int) -> Timing:
        raise RuntimeError("no memory")


async def test_a_stack_that_fails_does_not_cost_the_others_their_numbers() -> None:
    stacks = [Broken(), Always("a", timing(0.05, 0.01), [])]
    found = await in_turns(stacks, same(), at_once=4, tokens=5, seconds=0, at_least=2)
    assert "no memory" in found["broken"].failure
    assert found["a"].failure == "" and summary(found["a"])["requests"] == 16


@pytest.fixture
def result() -> dict[str, Any]:
    def numbers(first: float, gap: float) -> dict[str, float]:
        return summary(Turns([[timing(first, gap)], [timing(first, gap)]], [0.1, 0.1]))

    hop = {"stage": "frontend", "name": "total", "start": 0.0, "ms": 120.0, "bytes": 0, "lane": ""}
    return {
        "settings": {
            **{"gpus": 1, "gpu": "none", "sglang": "0", "size": "7b", "dtype": "bfloat16", "tokens": 64},
            **{"rows": 1296, "prompt tokens": 1506, "kv tokens": 16384},
        },
        "points": [
            {"at once": 1, "stacks": {"panels": numbers(0.052, 0.010), "bare split": numbers(0.050, 0.010)}},
            {"at once": 8, "stacks": {"panels": numbers(0.300, 0.012), "bare split": numbers(0.200, 0.010)}},
            {"at once": 1, "stacks": {"panels": numbers(0.052, 0.010), "aggregated": numbers(0.045, 0.010)}},
        ],
        "fresh": {"requests": 12, "ms p50": 131.0, "ms p99": 140.0, "hops": [hop]},
    }


def test_what_was_wanted_is_held_against_what_was_seen(result: dict[str, Any]) -> None:
    verdicts = list(sglang_page.verdicts(result))
    assert "+2.00 ms to the first token" in verdicts[0] and verdicts[0].endswith("less than 3 ms: met.")
    assert verdicts[1].endswith("nothing measurable: met.")
    assert "+100.00 ms" in verdicts[2] and "Wanted" not in verdicts[2]
    assert "+2.000 ms to each token" in verdicts[3] and "Wanted" not in verdicts[3]
    assert "131.0 ms" in verdicts[4] and verdicts[4].endswith("**not met**.")
    assert len(verdicts) == 5
    result["points"][0]["stacks"]["panels"]["token p50"] += 0.5
    assert list(sglang_page.verdicts(result))[1].endswith("**not met**.")


def test_it_is_written_between_its_own_marks(result: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    one, two = "<!-- measured: sglang, 1 -->", "<!-- measured: sglang, 2 -->"
    page.write_text(f"{one}\nold\n{one}\n{two}\nother\n{two}\n")
    sglang_page.write(page, result)
    text = page.read_text()
    assert "| bare split | 1 | 50.0 ms | 50.0 ms | 10.00 ms | 10.00 ms | 10.00 ms | 50 | 2 |" in text
    assert "old" not in text and "other" in text
    assert "| frontend | total | 120.00 | 100.0% |" in text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sized")
    write(folder, TINY)
    return folder


def test_every_token_of_the_sized_model_is_text(model: Path) -> None:
    files = load(str(model))
    special = set(files.tokenizer.get_added_tokens_decoder())
    vocab_size = json.loads((model / "config.json").read_text())["text_config"]["vocab_size"]
    assert files.tokenizer.get_vocab_size() == vocab_size == TINY.text["vocab_size"]
    text = Detokenizer(files.tokenizer)
    # Past the bundled vocabulary no token waits for another: each shows when it came.
    for id in range(max(special) + 1, vocab_size):
        assert text.push([id])
    assert {files.image_token_id, *files.stop_token_ids} <= special


def test_the_sized_model_is_a_checkpoint_whose_tower_runs(model: Path) -> None:
    checkpoint = Checkpoint.open(str(model), device="cpu")
    assert checkpoint.format.width == TINY.text["hidden_size"]
    engine = TransformersEncodeEngine(checkpoint)
    prepared = engine.prepare(Image.new("RGB", (TINY.picture, TINY.picture)))
    assert prepared.tokens == TINY.rows
    large = SIZES["7b"]
    assert engine.prepare(Image.new("RGB", (large.picture, large.picture))).tokens == large.rows == 1296
    grids = torch.tensor([prepared.grid])
    with torch.inference_mode():
        patches = Patches(model, torch.device("cpu")).of(prepared.pixels)
        rows = checkpoint.vision_tower()(patches, grid_thw=grids).pooler_output
    assert rows.shape == (TINY.rows, checkpoint.format.width) and bool(rows.isfinite().all())


def test_prompts_are_of_one_length_and_all_different(model: Path) -> None:
    questions = Questions(model, TINY, tokens=8)
    stock = questions.same_picture()
    asked = [next(stock), next(stock), next(questions.same_picture())]
    pictures = {json.loads(question.body)["messages"][0]["content"][0]["image_url"]["url"] for question in asked}
    assert len(pictures) == 1
    checkpoint = Checkpoint.open(str(model), device="cpu")
    assert {len(question.token_ids) for question in asked} == {211}  # one of them is the picture's placeholder
    assert len({tuple(question.token_ids) for question in asked}) == 3
    assert all(question.token_ids.count(checkpoint.config.image_token_id) == 1 for question in asked)
    assert questions.picture() != questions.picture()


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 1), ("cuda", 1), ("cuda", 2)])
def test_there_is_memory_for_thirty_two_pictures(model: Path, device: str, gpus: int) -> None:
    """Prefill keeps the embeddings of two prompts of full length; and the topology is one."""
    place = Place.of(device, gpus, None)
    checked = Topology.model_validate(topology(model, place, "bfloat16", 32))
    assert 2 * min(place.prefill_kv, checked.model.max_context or 0) >= 32 * SIZES["7b"].rows
    assert (checked.prefill.device, checked.decode.device) == (place.prefill, place.decode)
    assert len(place.whole) == gpus


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_bare_engines_are_started_as_ours_are(model: Path, device: str) -> None:
    settings = topology(model, Place.of(device.partition(":")[0], 1, None), "bfloat16", 32)
    checked = Topology.model_validate(settings)
    checkpoint = replace(Checkpoint.open(str(model), device="cpu"), device=torch.device(device))
    ports = {"port", "nccl_port", "disaggregation_bootstrap_port"}

    def started(arguments: Arguments) -> dict[str, Any]:
        return {name: value for name, value in arguments.engine.items() if name not in ports} | dict(arguments.chosen)

    prefill, decode = Arguments.for_prefill(checkpoint, checked), Arguments.for_decode(checkpoint, checked)
    assert started(bare_arguments("prefill", checkpoint, checked)) == started(prefill)
    assert started(bare_arguments("decode", checkpoint, checked)) == started(decode)
    whole = started(bare_arguments("whole", checkpoint, checked))
    assert whole["load_format"] == "dummy" and whole["disable_radix_cache"] is True
    assert whole["max_total_tokens"] == checked.decode.kv_tokens and whole["max_running_requests"] == 32
    assert not any(name.startswith("disaggregation") for name in whole)
    # Decode runs its graphs, and prompts' rows stay on the GPU: an engine for all is not held back.
    assert whole.get("disable_cuda_graph", False) is (device == "cpu")
    assert whole.get("mm_feature_transport") == (None if device == "cpu" else "cuda_ipc")
