"""The one place that says how big the model is: its Hugging Face configuration.

Sizes were chosen for three readers at once. A CPU must answer in tens of milliseconds, so about 11 M parameters. GPU
attention kernels want heads of 64. And two panels can share the language model by tensor parallelism, so 2 KV heads.
"""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 4096
"""Rows of the embedding. The tokenizer has fewer tokens; training never asks for the spare rows."""

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

PATCH = 14
MERGE = 2
CELL = PATCH * MERGE
"""Pixels of a side that become one image token."""

WINDOW = 112
"""Pixels of a side inside which the windowed vision layers attend."""

MIN_PIXELS = 196 * 224
MAX_PIXELS = 224 * 224
"""Served pictures are resized to about these areas, the sizes seen in training: a square one becomes 224 x 224."""

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

VISION = {
    "depth": 7,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_heads": 4,
    "out_hidden_size": 256,
    "in_channels": 3,
    "in_chans": 3,
    "patch_size": PATCH,
    "spatial_patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "window_size": WINDOW,
    "fullatt_block_indexes": [1, 3, 5, 6],
    "tokens_per_second": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
}

MROPE_SECTION = [8, 12, 12]
"""Of the 32 rotary frequencies of a head, how many follow time, height and width."""

ROPE_THETA = 10000.0

TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
}


def config_dict(token_id: dict[str, int]) -> dict[str, Any]:
    """config.json, readable by transformers 5 (text_config, rope_parameters) and by older loaders.

    SGLang, vLLM and TensorRT-LLM read some numbers from the top level and the rotary settings under their old names
    (rope_theta, rope_scaling), so both are written.

    token_id: id of each special token.
    """
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": MROPE_SECTION, "rope_theta": ROPE_THETA}
    ids = {
        "bos_token_id": token_id["<|endoftext|>"],
        "eos_token_id": token_id["<|im_end|>"],
        "pad_token_id": token_id["<|endoftext|>"],
    }
    old_rope = {
        "rope_theta": ROPE_THETA,
        "rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": MROPE_SECTION},
    }
    vision_tokens = {
        "image_token_id": token_id["<|image_pad|>"],
        "video_token_id": token_id["<|video_pad|>"],
        "vision_start_token_id": token_id["<|vision_start|>"],
        "vision_end_token_id": token_id["<|vision_end|>"],
    }
    layer_types = ["full_attention"] * TEXT["num_hidden_layers"]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        **TEXT,
        **ids,
        **old_rope,
        **vision_tokens,
        "vision_token_id": token_id["<|vision_pad|>"],
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "dtype": "bfloat16",
            "layer_types": layer_types,
            "max_window_layers": TEXT["num_hidden_layers"],
            "rope_parameters": rope,
            **TEXT,
            **ids,
            **old_rope,
        },
        "vision_config": {"model_type": "qwen2_5_vl_vision", "dtype": "bfloat16", **VISION},
    }
