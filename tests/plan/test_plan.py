"""The arithmetic against cases worked out by hand, and the split against what must hold of any."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from components.plan.command import Request, main, plan
from components.plan.costs import (
    Traffic,
    decode_step_bytes,
    decode_weight_bytes,
    embedding_bytes,
    encode_flops,
    kv_bytes_a_token,
    prefill_flops,
    prompt_tokens,
)
from components.plan.dimensions import Dimensions, Language, PlanError, Vision, read
from components.plan.propose import GPUS, Margins, highest_rate, propose
from tests.model import MODEL

# Qwen2.5-VL-7B-Instruct, as its config.json has it.
SEVEN_B = Dimensions(
    "7B",
    Language(
        layers=28,
        hidden=3584,
        heads=28,
        kv_heads=4,
        head_dim=128,
        intermediate=18944,
        vocabulary=152064,
        tied=False,
    ),
    Vision(
        layers=32,
        full_layers=4,
        hidden=1280,
        intermediate=3420,
        patch=14,
        temporal=2,
        channels=3,
        merge=2,
        window=112,
        output=3584,
    ),
    2,
)
H100 = GPUS["h100"]
TRAFFIC = Traffic(rate=4.0, images=1, width=1288, height=728, text_tokens=200, output_tokens=300)


def test_parameters() -> None:
    # A layer: attention 3584*(3584+2*512) + (3584+2*512) + 3584*3584 = 29,364,736; MLP 3*3584*18944 = 203,685,888;
    # norms 7,168. Sum 233,057,792, x 28 = 6,525,618,176; table and head 2*152064*3584 = 1,089,994,752; last norm 3,584.
    assert SEVEN_B.language.layer_parameters == 6_525_618_176
    assert SEVEN_B.language.parameters == 7_615_616_512
    # A block of the tower: attention 6,558,720, MLP 13,140,920, norms 2,560: 19,702,200, x 32; patches 1,505,280;
    # merger 44,574,464. Together with the above 8,292,166,656: what the checkpoint holds.
    assert SEVEN_B.vision.layer_parameters == 32 * 19_702_200
    assert SEVEN_B.vision.embed_parameters == 1_505_280
    assert SEVEN_B.vision.merger_parameters == 44_574_464
    assert SEVEN_B.language.parameters + SEVEN_B.vision.parameters == 8_292_166_656


def test_the_bundled_model_has_as_many_parameters_as_its_file() -> None:
    path = MODEL / "model.safetensors"
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    held = sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    model = read(MODEL)
    assert model.language.parameters + model.vision.parameters == held


def test_bytes() -> None:
    assert kv_bytes_a_token(SEVEN_B) == 57_344  # 2 * 28 * 4 * 128 * 2
    # 1288x728 are 46x26 tokens of 28x28 pixels.
    assert SEVEN_B.vision.tokens(1288, 728) == 1196
    assert SEVEN_B.vision.patches(1288, 728) == 4784
    assert prompt_tokens(SEVEN_B, TRAFFIC) == 1396
    assert embedding_bytes(SEVEN_B, TRAFFIC) == 1196 * 3584 * 2
    # Layers and head: (6,525,618,176 + 544,997,376) * 2.
    assert decode_weight_bytes(SEVEN_B) == 14_141_231_104
    assert decode_step_bytes(SEVEN_B, 10, 1000) == 14_141_231_104 + 573_440_000


def test_operations() -> None:
    # 2 * 1000 * 6,525,618,176 + 2 * 1000^2 * 3584 * 28 + 2 * 544,997,376
    assert prefill_flops(SEVEN_B, 1000) == 13_051_236_352_000 + 200_704_000_000 + 1_089_994_752
    # A picture of one window, 8x8 patches: 2*64*(630,470,400 + 1,505,280) + 2*16*44,574,464 + 4*64*64*1280*32
    assert encode_flops(SEVEN_B, 112, 112) == 80_892_887_040 + 1_426_382_848 + 671_088_640
    # 4784 patches: full attention in 4 layers, windows of 64 in 28.
    attention = 4 * 4784 * 4784 * 1280 * 4 + 4 * 4784 * 64 * 1280 * 28
    weights = 2 * 4784 * (630_470_400 + 1_505_280) + 2 * 1196 * 44_574_464
    assert encode_flops(SEVEN_B, 1288, 728) == attention + weights


def test_decode_by_hand() -> None:
    """Little's law: the batch that the proposal gives makes steps of the time that gives this batch."""
    found = propose(SEVEN_B, H100, TRAFFIC, 0.05, Margins())
    per_worker = TRAFFIC.rate / found.decode.workers
    context = 1396 + 150
    step = decode_step_bytes(SEVEN_B, found.batch, context) / (3.35e12 * 0.7)
    assert found.batch == pytest.approx(per_worker * TRAFFIC.output_tokens * step)
    assert found.decode.seconds == pytest.approx(step)
    # Memory: 80 GB * 0.9 - 2 * 7,615,616,512 = 56.77 GB, / 57,344 = 989,968 tokens.
    assert found.decode.kv_tokens == int((72e9 - 15_231_233_024) / 57_344) == 989_968


def test_a_little_traffic_needs_one_of_each() -> None:
    found = propose(SEVEN_B, H100, replace(TRAFFIC, rate=0.01), 0.05, Margins())
    assert found.name == "E1 P1 D1"
    # Alone in the batch, a step takes one request's time, not less.
    assert found.decode.seconds == pytest.approx((14_141_231_104 + 1546 * 57_344) / (3.35e12 * 0.7))


def test_more_traffic_never_needs_fewer() -> None:
    needed = [propose(SEVEN_B, H100, replace(TRAFFIC, rate=rate), 0.05, Margins()).gpus for rate in (1, 10, 50, 200)]
    assert needed == sorted(needed)
    assert needed[-1] > needed[0]


@pytest.mark.parametrize("rate", [5.0, 40.0, 160.0])
def test_no_panel_is_busier_than_allowed_and_none_has_one_too_many(rate: float) -> None:
    found = propose(SEVEN_B, H100, replace(TRAFFIC, rate=rate), 0.05, Margins())
    for panel in (found.encode, found.prefill):
        assert panel.busy / panel.workers <= 0.7
        assert panel.workers == 1 or panel.busy / (panel.workers - 1) > 0.7
    assert found.decode.busy <= 0.7
    assert found.decode.seconds <= 0.05


def test_pictures_ask_for_encoders_and_answers_for_decoders() -> None:
    few = propose(SEVEN_B, H100, replace(TRAFFIC, rate=20.0), 0.02, Margins())
    pictures = propose(SEVEN_B, H100, replace(TRAFFIC, rate=20.0, images=8), 0.02, Margins())
    answers = propose(SEVEN_B, H100, replace(TRAFFIC, rate=20.0, output_tokens=3000), 0.02, Margins())
    assert pictures.encode.workers > few.encode.workers
    assert answers.decode.workers > few.decode.workers
    assert answers.encode.workers == few.encode.workers


def test_the_highest_rate_fits_and_a_higher_one_does_not() -> None:
    most = highest_rate(SEVEN_B, H100, TRAFFIC, 0.05, Margins(), 8)
    assert propose(SEVEN_B, H100, most, 0.05, Margins()).gpus <= 8
    assert propose(SEVEN_B, H100, replace(most, rate=most.rate * 1.01), 0.05, Margins()).gpus > 8


def test_what_cannot_be() -> None:
    with pytest.raises(PlanError, match="needs 3 GPUs, not 2"):
        highest_rate(SEVEN_B, H100, TRAFFIC, 0.05, Margins(), 2)
    with pytest.raises(PlanError, match=r"reading the weights alone takes 6\.0 ms"):
        propose(SEVEN_B, H100, TRAFFIC, 0.004, Margins())
    with pytest.raises(PlanError, match="tensor parallelism"):
        propose(SEVEN_B, replace(H100, gigabytes=16), TRAFFIC, 0.05, Margins())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(PlanError, match="'llama'"):
        read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(PlanError, match="num_attention_heads"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("gpu", "request_", "says"),
    [
        ("h1000", Request(1.0, 1, "64x64", 10, 10, 0.05), "there are a100"),
        ("h100", Request(1.0, 1, "64", 10, 10, 0.05), "WIDTHxHEIGHT"),
        ("h100", Request(0.0, 1, "64x64", 10, 10, 0.05), "more than zero"),
    ],
)
def test_a_command_line_that_makes_no_sense(gpu: str, request_: Request, says: str) -> None:
    assert says in str(main(MODEL, gpu, None, request_, json=False))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    plan(MODEL, H100, TRAFFIC, 0.05, 8, Margins(), json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["gpus"] <= 8
    assert said["split"].startswith("E")
    plan(MODEL, H100, TRAFFIC, 0.05, None, Margins(), json=False)
    assert said["kv_bytes_a_token"] == kv_bytes_a_token(read(MODEL))
    assert "B a token" in capsys.readouterr().out
