"""Every SGLang topology in `configs/`, held against the argument class of the SGLang that is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sglang.srt.server_args import ServerArgs

from components.config import load
from components.engines.sglang.arguments import Arguments
from components.engines.transformers.checkpoint import Checkpoint
from tests.model import MODEL

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*sglang*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_installed_release_takes_our_arguments(config: Path) -> None:
    topology = load(config, [f"model.path={MODEL}"])
    assert topology.engine == "sglang"
    on_cpu = Checkpoint.open(str(MODEL), device="cpu")
    on_gpu = replace(on_cpu, dtype=torch.bfloat16, device=torch.device("cuda:1"))
    for checkpoint in (on_cpu, on_gpu):
        for arguments in (Arguments.for_prefill(checkpoint, topology), Arguments.for_decode(checkpoint, topology)):
            known = arguments.known(ServerArgs)
            assert known.keys() == arguments.engine.keys()
            ServerArgs(**known)
