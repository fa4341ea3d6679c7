"""What the adapter finds out before any request: the model, the release, the GPU, a picture's size."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from components.config import load
from components.engines.base import EngineError
from components.engines.trtllm import encode_engine, release
from components.engines.trtllm.decode import TrtllmDecodeEngine
from components.engines.trtllm.devices import make_visible
from components.engines.trtllm.model import Model
from components.engines.trtllm.patches import Patches
from tests.engines_trtllm import models


@pytest.fixture
def qwen(tmp_path: Path) -> Model:
    return Model.open(str(models.qwen(tmp_path)))


def test_a_release_without_rotary_positions_is_refused_at_the_start(
    qwen: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(kw_only=True)
    class Older:
        request_type: str | None = None

    monkeypatch.setattr(release, "DisaggregatedParams", Older)
    with pytest.raises(ValueError, match=r"1\.2"):
        TrtllmDecodeEngine(qwen, kv_tokens=512, max_batch=1, transfer_seconds=1)


async def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    folder = models.qwen(tmp_path)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ValueError, match="qwen3_vl"):
        Model.open(str(folder))


def test_embeddings_of_other_weights_or_another_type_are_other_embeddings(tmp_path: Path) -> None:
    folder = models.qwen(tmp_path)
    revisions = [Model.open(str(folder), dtype=dtype).format.revision for dtype in ("auto", "bfloat16", "float16")]
    assert revisions[0] == revisions[1] != revisions[2]
    (folder / "model.safetensors").write_bytes(b"weights")
    assert Model.open(str(folder)).format.revision not in revisions


PATCHES = Patches(size=14, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_a_pictures_grid_is_that_of_transformers(width: int, height: int) -> None:
    try:
        sides = smart_resize(height, width, factor=28, min_pixels=PATCHES.min_pixels, max_pixels=PATCHES.max_pixels)
    except ValueError:
        with pytest.raises(EngineError) as refused:
            PATCHES.grid(width, height)
        assert refused.value.code == "image_undecodable"
    else:
        assert PATCHES.grid(width, height) == (1, sides[0] // 14, sides[1] // 14)


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [
        ("auto", None, None),
        ("cuda:0", None, None),
        ("cuda:2", None, "2,0,1,3"),
        ("cuda:1", "4,5", "5,4"),
    ],
)
def test_the_chosen_gpu_comes_first_and_the_others_stay_visible(
    device: str, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    # Set first, so that the fixture puts back what was there.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    make_visible(device)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == after


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ValueError, match="sees 2"):
        make_visible("cuda:2")


def test_without_tensorrt_llm_the_vision_tower_of_transformers_makes_the_same_kind_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.qwen(tmp_path)
    config = Qwen2_5_VLConfig(
        text_config={"hidden_size": models.WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 480},
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": models.WIDTH},
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    monkeypatch.setattr("components.engines.trtllm.find_spec", lambda name: None)
    topology = load(None, [f"model.path={folder}", "model.dtype=float16", "encode.device=cpu"], environ={})
    tower = encode_engine(topology)
    expected = Model.open(str(folder), dtype="float16").format
    assert (tower.format.width, tower.format.dtype, tower.format.revision) == (
        expected.width,
        expected.dtype,
        expected.revision,
    )
    prepared = tower.prepare(Image.new("RGB", (112, 84)))
    assert prepared.grid == Patches.open(folder).grid(112, 84)
    assert prepared.tokens == 12
