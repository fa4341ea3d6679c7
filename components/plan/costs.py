"""What one request costs: operations for encode and prefill, bytes for decode and for what moves between panels."""

from __future__ import annotations

from dataclasses import dataclass

from components.plan.dimensions import Dimensions


@dataclass(frozen=True)
class Traffic:
    """What comes in: ``rate`` requests a second, each with that many pictures of that size, text tokens and answer."""

    rate: float
    images: int
    width: int
    height: int
    text_tokens: int
    output_tokens: int


def kv_bytes_a_token(model: Dimensions) -> int:
    """Two (K and V) x layers x KV heads x head dimension x bytes a value. Source: the shape of the cache."""
    language = model.language
    return 2 * language.layers * language.kv_heads * language.head_dim * model.value_bytes


def prompt_tokens(model: Dimensions, traffic: Traffic) -> int:
    """Text, and a token for merge x merge patches of each picture."""
    return traffic.text_tokens + traffic.images * model.vision.tokens(traffic.width, traffic.height)


def encode_flops(model: Dimensions, width: int, height: int) -> float:
    """Of one picture.

    Two operations a weight and patch (Kaplan et al. 2020, section 2.1), and for attention 4 x patches x span x hidden
    a layer: QK^T and AV, two operations each (Korthikanti et al. 2022, appendix A), where span is the whole picture in
    full layers and a window of (window / patch)^2 patches in the others.
    """
    vision = model.vision
    patches = vision.patches(width, height)
    weights = 2.0 * patches * (vision.layer_parameters + vision.embed_parameters)
    merger = 2.0 * patches / vision.merge**2 * vision.merger_parameters
    span = min(patches, (vision.window // vision.patch) ** 2)
    full = 4.0 * patches * patches * vision.hidden * vision.full_layers
    windows = 4.0 * patches * span * vision.hidden * (vision.layers - vision.full_layers)
    return weights + merger + full + windows


def prefill_flops(model: Dimensions, tokens: int) -> float:
    """Of one prompt.

    Two operations a weight and token (Kaplan et al. 2020); causal attention is half of 4 x tokens^2 x heads x head
    dimension a layer (Korthikanti et al. 2022); logits for the last token only.
    """
    language = model.language
    attention = 2.0 * tokens * tokens * language.heads * language.head_dim * language.layers
    return 2.0 * tokens * language.layer_parameters + attention + 2.0 * language.head_parameters


def decode_weight_bytes(model: Dimensions) -> int:
    """Read once a step, whatever the batch: all layers, and the matrix of logits. The embedding table is looked up."""
    return (model.language.layer_parameters + model.language.head_parameters) * model.value_bytes


def decode_step_bytes(model: Dimensions, batch: float, context: float) -> float:
    """Read in one step: the weights, and the KV of every request in the batch (Pope et al. 2022, section 2)."""
    return decode_weight_bytes(model) + batch * context * kv_bytes_a_token(model)


def embedding_bytes(model: Dimensions, traffic: Traffic) -> int:
    """What prefill reads from encode for one request."""
    tokens = traffic.images * model.vision.tokens(traffic.width, traffic.height)
    return tokens * model.language.hidden * model.value_bytes
