"""From a picture to the patches that the vision tower takes: resized by Pillow, all else on the tower's device.

The processor of transformers does all of it on the host in float32: for 1008 x 1008 pixels 30 ms on a core, and eight
times the bytes on their way to a GPU. Its settings and results are kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize


class Patches:
    """For one checkpoint folder. Raises ValueError for settings that Qwen2.5-VL does not have."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        # The PIL processor, not AutoProcessor: that one wants torchvision for videos.
        settings = Qwen2VLImageProcessorPil.from_pretrained(folder)
        if not (settings.do_resize and settings.do_rescale and settings.do_normalize):
            raise ValueError(f"{folder}: a picture must be resized, rescaled and normalized")
        self._resample = Image.Resampling(settings.resample)
        self._least, self._most = settings.size["shortest_edge"], settings.size["longest_edge"]
        self._side, self._frames, self._merge = settings.patch_size, settings.temporal_patch_size, settings.merge_size
        self._device = device
        self._scale = settings.rescale_factor
        self._mean = torch.tensor(settings.image_mean, device=device).reshape(3, 1, 1)
        self._std = torch.tensor(settings.image_std, device=device).reshape(3, 1, 1)

    def resized(self, image: Image.Image) -> torch.Tensor:
        """(height, width, 3) bytes of an RGB picture on the host, both sides whole numbers of merged patches. Raises
        ValueError for pictures more than 200 times as long as wide."""
        height, width = smart_resize(
            image.height, image.width, self._side * self._merge, min_pixels=self._least, max_pixels=self._most
        )
        return torch.from_numpy(np.array(image.resize((width, height), self._resample)))

    def grid(self, pixels: torch.Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of patches."""
        return 1, pixels.shape[0] // self._side, pixels.shape[1] // self._side

    def of(self, pixels: torch.Tensor) -> torch.Tensor:
        """(patches, values of one) in float32 on the device; patches that are merged later lie together."""
        side, merge = self._side, self._merge
        _, rows, columns = self.grid(pixels)
        cut = pixels.to(self._device).reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
        # Block row, block column, row, column, color, y, x: moved as bytes, which are the least to move.
        cut = cut.permute(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, side * side)
        scaled = (cut.float() * self._scale - self._mean) / self._std
        return scaled.expand(-1, -1, self._frames, -1).flatten(1)  # a picture is a film that stands still
