"""Write a checkpoint as an ordinary Hugging Face folder that transformers, SGLang, vLLM and TensorRT-LLM load.

python -m models.train.export CHECKPOINT TOKENIZER_FOLDER OUT
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from .architecture import IMAGE_MEAN, IMAGE_STD, MAX_PIXELS, MERGE, MIN_PIXELS, PATCH, SPECIAL_TOKENS, config_dict

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja"]


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def export(state: dict[str, torch.Tensor], tokenizer_folder: Path, out: Path) -> None:
    """state: parameters under transformers' names, any float type; stored as bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    token_id = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    if tokenizer_folder.resolve() != out.resolve():
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_folder / name, out / name)

    write_json(out / "config.json", config_dict(token_id))
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": token_id["<|endoftext|>"],
            "pad_token_id": token_id["<|endoftext|>"],
            "eos_token_id": [token_id["<|im_end|>"], token_id["<|endoftext|>"]],
            "do_sample": False,
            "max_new_tokens": 128,
        },
    )
    write_json(
        out / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "patch_size": PATCH,
            "merge_size": MERGE,
            "temporal_patch_size": 2,
            "min_pixels": MIN_PIXELS,
            "max_pixels": MAX_PIXELS,
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
        },
    )
    weights = {name: tensor.detach().cpu().to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="file written by models.train.train")
    parser.add_argument("tokenizer", type=Path, help="folder written by models.train.tokenizer")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args()
    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    state = checkpoint["model"]
    export(state, args.tokenizer, args.out)
    print(f"{sum(t.numel() for t in state.values()):,} parameters in {args.out}")


if __name__ == "__main__":
    main()
