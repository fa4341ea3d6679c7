"""Our M-RoPE positions against transformers' own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from components.engines.base import EngineError
from components.engines.transformers.positions import expand, mrope_positions

IMAGE, MERGE = 7, 2


@pytest.fixture(scope="module")
def reference() -> Qwen2_5_VLModel:
    """No weights: only the method that computes positions is used."""
    with torch.device("meta"):
        return Qwen2_5_VLModel(
            Qwen2_5_VLConfig(
                text_config={"num_hidden_layers": 1, "hidden_size": 128, "num_attention_heads": 1, "vocab_size": 16},
                vision_config={"depth": 1, "hidden_size": 64, "num_heads": 1, "out_hidden_size": 128},
                image_token_id=IMAGE,
            )
        )


sides = st.integers(1, 9).map(lambda n: n * MERGE)
texts = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@given(parts=st.lists(st.tuples(texts, sides, sides), max_size=4), tail=texts)
def test_positions_equal_those_of_transformers(
    reference: Qwen2_5_VLModel, parts: list[tuple[list[int], int, int]], tail: list[int]
) -> None:
    ids = [token for text, _, _ in parts for token in (*text, IMAGE)] + tail
    grids = [(1, h, w) for _, h, w in parts]
    expanded = expand(ids, IMAGE, [h * w // MERGE**2 for _, h, w in grids])
    ours, following = mrope_positions(expanded, IMAGE, grids, MERGE)

    tokens = torch.tensor([expanded])
    theirs, delta = reference.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == IMAGE).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    assert ours.tolist() == theirs[:, 0].tolist()
    assert following == len(expanded) + int(delta)


def test_expand_refuses_a_count_that_does_not_match() -> None:
    with pytest.raises(EngineError) as refused:
        expand([1, IMAGE, 2], IMAGE, [4, 4])
    assert refused.value.code == "invalid_request"
