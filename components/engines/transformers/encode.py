"""The vision tower of Qwen2.5-VL as an encode engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image

from components.engines.base import EngineError, PreparedImage
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.pixels import Patches
from components.nixl_connect import Slot


class TransformersEncodeEngine:
    """Loads the vision tower alone."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.format = checkpoint.format
        self._device = checkpoint.device
        self._dtype = checkpoint.dtype
        self._merge = checkpoint.merge
        self._patches = Patches(checkpoint.folder, checkpoint.device)
        self._tower = checkpoint.vision_tower()

    def prepare(self, image: Image.Image) -> PreparedImage:
        try:
            pixels = self._patches.resized(image)
        except ValueError as error:  # pictures more than 200 times as long as wide
            raise EngineError("image_undecodable", f"the model cannot take this picture: {error}") from error
        grid = self._patches.grid(pixels)
        return PreparedImage(pixels, grid, math.prod(grid) // self._merge**2)

    def encode(self, images: Sequence[PreparedImage], slots: Sequence[Slot]) -> None:
        with self._on_device():
            self._encode(images, slots)

    def warm_up(self) -> None:
        with self._on_device():
            self._rows([self.prepare(Image.new("RGB", (224, 224)))])

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """SGLang's tower launches kernels on the thread's GPU, wherever its tensors are; a new thread has the first."""
        device = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        with torch.inference_mode(), device:
            yield

    def _encode(self, images: Sequence[PreparedImage], slots: Sequence[Slot]) -> None:
        rows = self._rows(images)
        for slot, part in zip(slots, rows.split([image.tokens for image in images]), strict=True):
            slot.tensor(self._dtype, part.shape).copy_(part)
        if self._device.type == "cuda":
            # The reader is another process: it must not see rows that a stream has yet to write.
            torch.cuda.synchronize(self._device)

    def _rows(self, images: Sequence[PreparedImage]) -> torch.Tensor:
        """(tokens of all, width)."""
        patches = torch.cat([self._patches.of(image.pixels) for image in images]).to(self._dtype)
        grids = torch.tensor([image.grid for image in images], device=self._device)
        rows: torch.Tensor = self._tower(patches, grid_thw=grids).pooler_output
        return rows
