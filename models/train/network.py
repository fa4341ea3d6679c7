"""A compact Qwen2.5-VL for training: the same parameter names and mathematics as transformers' class, other plumbing.

transformers serves pictures of any size in one packed sequence and loops over attention windows; training has batches
of equal pictures, where dense attention on [pictures, patches] is many times faster. `parity.py` proves that both give
the same logits from the same weights.

Order of patches: as in transformers, window by window, and inside a window in groups of 2 x 2 (one image token each).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import CELL, MERGE, MROPE_SECTION, PATCH, ROPE_THETA, TEXT, VISION, WINDOW

HEAD = 64


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), 1e-6).to(x.dtype)


class GatedMLP(nn.Module):
    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions. x: [batch, heads, tokens, HEAD]; cos, sin: broadcastable to it."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


@dataclass(frozen=True)
class Layout:
    """How one picture size is cut. Token = 2 x 2 patches.

    order: [tokens] place of each window-ordered token in the row-by-row grid of tokens.
    positions: [patches, 2] row and column of each patch, in window order.
    window: [patches] number of the window of each patch.
    equal: patches of a window when all windows are full, else 0.
    """

    order: Tensor
    positions: Tensor
    window: Tensor
    equal: int


@lru_cache(maxsize=64)
def layout(height: int, width: int) -> Layout:
    """Height and width in pixels, multiples of CELL."""
    rows, columns, side = height // CELL, width // CELL, WINDOW // CELL
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    window = (row // side * (columns + side) + column // side).flatten()
    order = torch.argsort(window, stable=True)
    inner = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    corner = torch.stack((row, column), -1).reshape(-1, 1, 2)[order] * MERGE
    full = height % WINDOW == 0 and width % WINDOW == 0
    return Layout(
        order,
        (corner + inner).reshape(-1, 2),
        window[order].repeat_interleave(MERGE**2),
        (WINDOW // PATCH) ** 2 if full else 0,
    )


def patchify(pictures: Tensor) -> Tensor:
    """[n, 3, height, width] -> [n, patches, 3 * PATCH * PATCH], in window order."""
    n, _, height, width = pictures.shape
    rows, columns = height // CELL, width // CELL
    x = pictures.reshape(n, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(n, rows * columns, MERGE**2, 3 * PATCH * PATCH)
    order = layout(height, width).order.to(x.device)
    return x[:, order].reshape(n, -1, 3 * PATCH * PATCH)


class VisionAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, group: int) -> Tensor:
        """x: [n, patches, width]. group > 0: attend inside runs of `group` patches; mask: [patches, patches] bool."""
        n, patches, width = x.shape
        q, k, v = self.qkv(x).reshape(n, patches, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if group:
            heads = width // HEAD
            q, k, v = (t.reshape(n * heads * (patches // group), 1, group, HEAD) for t in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v).reshape(n, heads, patches, HEAD)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(n, patches, width))


class VisionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = VISION["hidden_size"]
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = VisionAttention(width)
        self.mlp = GatedMLP(width, VISION["intermediate_size"], bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, group: int) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, mask, group)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, VISION["hidden_size"], (2, PATCH, PATCH), (2, PATCH, PATCH), bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        # A still picture is two equal frames, so the two time slices of the kernel only ever act as their sum.
        return F.linear(patches, self.proj.weight.sum(2).flatten(1))


class Merger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wide = VISION["hidden_size"] * MERGE**2
        self.ln_q = RMSNorm(VISION["hidden_size"])
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, VISION["out_hidden_size"]))

    def forward(self, x: Tensor) -> Tensor:
        n, patches, width = x.shape
        return self.mlp(self.ln_q(x).reshape(n, patches // MERGE**2, width * MERGE**2))


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(VisionBlock() for _ in range(VISION["depth"]))
        self.merger = Merger()

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised pictures [n, 3, height, width] of one size -> image tokens [n, tokens, 256] row by row."""
        height, width = pictures.shape[-2:]
        plan = layout(height, width)
        device = pictures.device
        rate = 10000.0 ** (-torch.arange(0, HEAD // 2, 2, device=device).float() / (HEAD // 2))
        angle = (plan.positions.to(device)[:, :, None] * rate).flatten(1)
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos(), angle.sin()
        mask = None
        if not plan.equal:
            window = plan.window.to(device)
            mask = window[:, None] == window[None, :]
        x = self.patch_embed(patchify(pictures))
        for index, block in enumerate(self.blocks):
            whole = index in VISION["fullatt_block_indexes"]
            x = block(x, cos, sin, None if whole else mask, 0 if whole else plan.equal)
        x = self.merger(x)
        return x[:, torch.argsort(plan.order).to(device)]


class TextAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, heads, kv = TEXT["hidden_size"], TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
        self.q_proj = nn.Linear(width, heads * HEAD)
        self.k_proj = nn.Linear(width, kv * HEAD)
        self.v_proj = nn.Linear(width, kv * HEAD)
        self.o_proj = nn.Linear(heads * HEAD, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = (p(x).reshape(n, tokens, -1, HEAD).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(n, tokens, -1))


class TextLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = TEXT["hidden_size"]
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)
        self.self_attn = TextAttention()
        self.mlp = GatedMLP(width, TEXT["intermediate_size"], bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(TEXT["vocab_size"], TEXT["hidden_size"])
        self.layers = nn.ModuleList(TextLayer() for _ in range(TEXT["num_hidden_layers"]))
        self.norm = RMSNorm(TEXT["hidden_size"])

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: embeddings [n, tokens, 256]; positions: [3, n, tokens] time, height, width -> hidden states."""
        rate = ROPE_THETA ** (-torch.arange(0, HEAD, 2, device=x.device).float() / HEAD)
        angle = positions[..., None].float() * rate
        # Each run of frequencies follows another of the three axes.
        angle = torch.cat([part[axis] for axis, part in enumerate(angle.split(MROPE_SECTION, dim=-1))], dim=-1)
        angle = torch.cat((angle, angle), dim=-1)[:, None]
        cos, sin = angle.cos(), angle.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class TinyVL(nn.Module):
    """Parameter names equal those of transformers' save_pretrained; the output matrix is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"visual": Vision(), "language_model": Text()})

    def init(self, seed: int) -> TinyVL:
        """Normal 0.02 for matrices; projections back into the residual stream smaller, so depth starts harmless."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.data.fill_(
                    1.0
                    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight", "layernorm.weight"))
                    else 0.0
                )
                continue
            back = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (0.005 if back else 0.02))
        return self

    def forward(self, ids: Tensor, positions: Tensor, pictures: list[Tensor], slots: Tensor) -> Tensor:
        """Hidden states [n, tokens, 256].

        ids: [n, tokens]; positions: [3, n, tokens]; pictures: normalised batches, one per size;
        slots: places of all image tokens in ids.flatten(), in the order of the pictures.
        """
        text = self.model["language_model"]
        x = text.embed_tokens(ids)
        if pictures:
            seen = torch.cat([self.model["visual"](batch).flatten(0, 1) for batch in pictures])
            x = x.flatten(0, 1).index_copy(0, slots, seen.to(x.dtype)).reshape(x.shape)
        return text(x, positions)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model["language_model"].embed_tokens.weight)
