"""SGLang's own vision tower, where the release has one: the same rows as that of transformers, sooner on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from components.engines.sglang.arguments import Arguments
from components.engines.sglang.host import own_logging, spare_the_collector
from components.engines.sglang.scheduler import take_new_names
from components.engines.transformers.checkpoint import Checkpoint
from components.runtime.servers import lasting_port

_PLACES = ("sglang.srt.disaggregation.encoder.server", "sglang.srt.disaggregation.encode_server")
"""Where releases keep ``MMEncoder``, the newer first."""


def encoder_module(find: Callable[[str], object] = find_spec) -> str | None:
    """The module that has ``MMEncoder``; None where sglang, or this release of it, has none."""
    for place in _PLACES:
        parts = place.split(".")
        if all(find(".".join(parts[:end])) for end in range(1, len(parts) + 1)):
            return place
    return None


@dataclass(frozen=True)
class EncoderCheckpoint(Checkpoint):
    """A checkpoint whose vision tower SGLang loads and runs; ``module`` is that of its ``MMEncoder``."""

    arguments: Arguments
    module: str

    def vision_tower(self) -> Any:
        os.environ.update(self.arguments.environment)
        with own_logging(self.arguments.engine["log_level"]):
            from sglang.srt.runtime_context import publish
            from sglang.srt.server_args import ServerArgs

            settings = ServerArgs(**self.arguments.known(ServerArgs))
            if hasattr(settings, "resolve_once"):  # 0.5.17 does so when it is made
                settings.resolve_once()
            settings.check_server_args()
            publish(settings, role="encoder")
            take_new_names()
            encoder = import_module(self.module).MMEncoder
            model = encoder(settings, dist_init_method=f"tcp://127.0.0.1:{lasting_port()}", rank=0).model
        spare_the_collector()
        return _Tower(model.visual)


@dataclass(frozen=True)
class _Rows:
    pooler_output: torch.Tensor


@dataclass(frozen=True)
class _Tower:
    """Called as that of transformers is.

    ``MMEncoder.encode`` would copy the rows to the host; ``get_image_feature`` of the model hands back, unseen, patches
    of a size that it does not expect.
    """

    visual: Any

    def __call__(self, pixels: torch.Tensor, grid_thw: torch.Tensor) -> _Rows:
        return _Rows(self.visual(pixels, grid_thw=grid_thw.cpu()))
