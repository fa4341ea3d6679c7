"""Model folders with hardly a weight: what the adapter and the contract read of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.processor.models import CONTEXT, make_model, make_tokenizer

WIDTH = 64


def qwen(folder: Path) -> Path:
    """Qwen2.5-VL, as transformers 5 writes it."""
    return _write(
        folder,
        model_type="qwen2_5_vl",
        image="<|image_pad|>",
        vision={"spatial_merge_size": 2, "patch_size": 14, "out_hidden_size": WIDTH},
    )


def llava(folder: Path) -> Path:
    """LLaVA-Next: other names for the same things, and no rotary positions."""
    folder = _write(folder, model_type="llava_next", image="<image>", vision={"patch_size": 14})
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] = tokenizer.token_to_id("<image>")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write(folder: Path, *, model_type: str, image: str, vision: dict[str, int]) -> Path:
    make_model(folder)
    save_file(
        {"weight": np.zeros(1, np.float32)}, folder / "model.safetensors"
    )  # `triptych up` looks whether there are any.
    tokenizer = make_tokenizer()
    config = {
        "model_type": model_type,
        "image_token_id": tokenizer.token_to_id(image),
        "text_config": {
            "hidden_size": WIDTH,
            "vocab_size": tokenizer.get_vocab_size() + 8,
            "max_position_embeddings": CONTEXT,
        },
        "vision_config": vision,
    }
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 256}
    preprocessor = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "size": sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder
