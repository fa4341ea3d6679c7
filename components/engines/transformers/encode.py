"""The vision tower of Qwen2.5-VL as an encode engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from components.engines.base import EngineError, PreparedImage
from components.engines.transformers.checkpoint import Checkpoint
from components.nixl_connect import Slot


class TransformersEncodeEngine:
    """Loads the vision tower alone."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.format = checkpoint.format
        self._device = checkpoint.device
        self._dtype = checkpoint.dtype
        self._merge = checkpoint.merge
        # The PIL processor, not AutoProcessor: that one wants torchvision for videos.
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint.folder)
        self._tower = checkpoint.vision_tower()

    def prepare(self, image: Image.Image) -> PreparedImage:
        try:
            features = self._processor(images=[image], return_tensors="pt")
        except ValueError as error:  # smart_resize refuses pictures more than 200 times as long as wide
            raise EngineError("image_undecodable", f"the model cannot take this picture: {error}") from error
        t, h, w = features["image_grid_thw"][0].tolist()
        return PreparedImage(features["pixel_values"], (t, h, w), t * h * w // self._merge**2)

    @torch.inference_mode()
    def encode(self, images: Sequence[PreparedImage], slots: Sequence[Slot]) -> None:
        pixels = torch.cat([image.pixels for image in images]).to(self._device, self._dtype)
        grids = torch.tensor([image.grid for image in images], device=self._device)
        rows = self._tower(pixels, grid_thw=grids).pooler_output
        for slot, part in zip(slots, rows.split([image.tokens for image in images]), strict=True):
            slot.tensor(self._dtype, part.shape).copy_(part)
        if self._device.type == "cuda":
            # The reader is another process: it must not see rows that a stream has yet to write.
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        image = self.prepare(Image.new("RGB", (224, 224)))
        self._tower(image.pixels.to(self._device, self._dtype), grid_thw=torch.tensor([image.grid]).to(self._device))
