"""Every SGLang topology in `configs/`, held against the argument class of the SGLang that is installed."""

from __future__ import annotations

import inspect
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from sglang.srt.server_args import ServerArgs

from components.config import load
from components.engines.sglang.arguments import Arguments
from components.engines.transformers.checkpoint import Checkpoint
from tests.engines_sglang.releases import RELEASES, names
from tests.model import MODEL

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*sglang*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_installed_release_takes_our_arguments(config: Path) -> None:
    topology = load(config, [f"model.path={MODEL}"])
    assert topology.engine == "sglang"
    on_cpu = Checkpoint.open(str(MODEL), device="cpu")
    on_gpu = replace(on_cpu, dtype=torch.bfloat16, device=torch.device("cuda:1"))
    for checkpoint in (on_cpu, on_gpu):
        for role in (Arguments.for_encode, Arguments.for_prefill, Arguments.for_decode):
            arguments = role(checkpoint, topology)
            known = arguments.known(ServerArgs)
            if version("sglang") == RELEASES[-1]:
                assert known.keys() == arguments.engine.keys()
            ServerArgs(**known)


def test_the_installed_release_has_the_names_that_we_wrote_down() -> None:
    release = version("sglang")
    assert release in RELEASES, "another release: write its names down beside the others, and run this test"
    assert set(inspect.signature(ServerArgs).parameters) == names(release)
