"""Prove that network.py computes what transformers' Qwen2_5_VLForConditionalGeneration computes.

Loads an exported folder into both and compares the logits of a two-picture conversation.

    python -m models.train.parity FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from .architecture import CELL
from .batch import rope_positions
from .network import TinyVL, patchify


def compare(folder: Path) -> float:
    """Largest difference of any logit, in float32."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    theirs, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {name: keys for name, keys in info.items() if keys}
    if problems:
        raise SystemExit(f"from_pretrained complains: {problems}")
    ours = TinyVL()
    ours.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})

    torch.manual_seed(0)
    sizes = [(224, 224), (168, 252)]
    pictures = [torch.randn(1, 3, height, width) for height, width in sizes]
    config = theirs.config
    ids: list[int] = [5, 6, 7]
    for height, width in sizes:
        ids += [
            config.vision_start_token_id,
            *[config.image_token_id] * (height * width // CELL**2),
            config.vision_end_token_id,
            11,
            12,
        ]
    tokens = torch.tensor([ids])
    grids = [(height // CELL, width // CELL) for height, width in sizes]
    positions = torch.tensor(rope_positions(ids, grids, config.image_token_id))[:, None]
    slots = (tokens.flatten() == config.image_token_id).nonzero().flatten()
    with torch.no_grad():
        mine = ours.logits(ours(tokens, positions, pictures, slots))
        theirs_out = theirs(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=flat_patches(pictures),
            image_grid_thw=torch.tensor([[1, h // 14, w // 14] for h, w in sizes]),
            mm_token_type_ids=(tokens == config.image_token_id).int(),
        ).logits
    return float((mine - theirs_out).abs().max() / theirs_out.abs().max())


def flat_patches(pictures: list[torch.Tensor]) -> torch.Tensor:
    """What transformers' image processor makes: [patches, 3 * 2 * 14 * 14], tokens row by row, each frame doubled."""
    from .network import layout

    rows = []
    for picture in pictures:
        back = torch.argsort(layout(*picture.shape[-2:]).order)
        patches = patchify(picture)[0].reshape(len(back), 4, 3, 1, 14, 14)[back]
        rows.append(patches.expand(-1, -1, -1, 2, -1, -1).reshape(-1, 3 * 2 * 14 * 14))
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    difference = compare(args.folder)
    print(f"largest difference of a logit, relative to the largest logit: {difference:.1e}")
    if not difference < 1e-4:
        raise SystemExit("network.py and transformers disagree")


if __name__ == "__main__":
    main()
