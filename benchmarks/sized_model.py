"""A model folder of given dimensions: real enough to be served at its real speed, and worth nothing otherwise.

    python -m benchmarks.sized_model FOLDER [--size 7b|tiny] [--device cuda]

The small files are those of the bundled model. The vision tower has random weights, because SGLang's encoder reads it
from the folder; the language model has none: it is for engines that make them up (``load_format: dummy``).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.config.topology import REPOSITORY

BUNDLED = REPOSITORY / "models" / "tiny-vl"
_COPIED = ("chat_template.jinja", "generation_config.json", "merges.txt", "tokenizer_config.json")
_WIDTH_PIXELS = 28
"""One row of an embedding is a square of this side: two by two patches of 14."""


@dataclass(frozen=True)
class Size:
    """Dimensions by the names of ``config.json``, and the side in pixels of the square picture that it is asked
    about."""

    text: dict[str, Any]
    vision: dict[str, Any]
    mrope_section: tuple[int, int, int]
    picture: int

    @property
    def rows(self) -> int:
        """Of the picture's embedding."""
        return (self.picture // _WIDTH_PIXELS) ** 2


SIZES = {
    "7b": Size(
        text={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        mrope_section=(16, 24, 24),
        picture=1008,
    ),
    "tiny": Size(
        text={
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 8192,
        },
        vision={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": 256,
            "fullatt_block_indexes": [1],
        },
        mrope_section=(8, 12, 12),
        picture=224,
    ),
}


def write(folder: Path, size: Size, device: str = "cpu") -> None:
    """``device`` is where the random numbers are made: 670 million of them take long on a CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        shutil.copy(BUNDLED / name, folder / name)
    _write(folder / "config.json", _config(size))
    _write(folder / "tokenizer.json", _tokenizer(size.text["vocab_size"]))
    _write(folder / "preprocessor_config.json", _preprocessor())
    _write_vision_weights(folder, device)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((BUNDLED / name).read_text(encoding="utf-8"))
    return content


def _config(size: Size) -> dict[str, Any]:
    config = _read("config.json")
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": list(size.mrope_section)}
    layers = size.text["num_hidden_layers"]
    text = {**size.text, "max_position_embeddings": 32768, "tie_word_embeddings": False, "max_window_layers": layers}
    config |= {**text, "rope_theta": 1e6, "rope_scaling": rope}
    config["text_config"] |= {
        **text,
        "rope_theta": 1e6,
        "rope_scaling": rope,
        "rope_parameters": {**rope, "rope_theta": 1e6},
        "layer_types": ["full_attention"] * layers,
    }
    config["vision_config"] |= size.vision
    return config


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """Every id becomes text: what random weights choose must reach the client, or nobody sees when it came."""
    tokenizer = _read("tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary |= {f"Ġw{id}": id for id in range(len(vocabulary), vocab_size)}
    return tokenizer


def _preprocessor() -> dict[str, Any]:
    least, most = 4 * _WIDTH_PIXELS**2, 4096 * _WIDTH_PIXELS**2
    pixels = {"min_pixels": least, "max_pixels": most, "size": {"shortest_edge": least, "longest_edge": most}}
    return _read("preprocessor_config.json") | pixels


def _write_vision_weights(folder: Path, device: str) -> None:
    # Late: whoever only wants to know the sizes does not wait for these.
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder).vision_config
        tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, empty in tower.state_dict().items():
        weight = torch.zeros(empty.shape, dtype=torch.bfloat16, device=device)
        if empty.dim() > 1:
            weight.normal_(0, 0.02, generator=generator)
        elif name.endswith("weight"):  # a norm's
            weight.fill_(1)
        weights[f"visual.{name}"] = weight.cpu()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--device", default="cpu", help="where the random numbers are made")
    options = parser.parse_args(arguments)
    write(options.folder, SIZES[options.size], options.device)


if __name__ == "__main__":
    main()
