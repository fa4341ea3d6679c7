"""Every SGLang topology in `configs/`, held against the argument class of the SGLang that is installed."""

from __future__ import annotations

import argparse
import inspect
from array import array
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.server_args import ServerArgs

from components.config import load
from components.engines.sglang.arguments import Arguments
from components.engines.sglang.request import probe
from components.engines.transformers.checkpoint import Checkpoint
from tests.engines_sglang.releases import RELEASES, names
from tests.model import MODEL

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*sglang*.yaml"))


def arguments(config: Path, device: str) -> Iterator[Arguments]:
    """Those of each role, for a model that runs there."""
    topology = load(config, [f"model.path={MODEL}"])
    assert topology.engine == "sglang"
    checkpoint = Checkpoint.open(str(MODEL), device="cpu")
    if device != "cpu":
        checkpoint = replace(checkpoint, dtype=torch.bfloat16, device=torch.device(device))
    for role in (Arguments.for_encode, Arguments.for_prefill, Arguments.for_decode):
        yield role(checkpoint, topology)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_installed_release_takes_our_arguments(config: Path, device: str) -> None:
    """Names by its class, values by its command line, whose choices and types the class itself does not look at."""
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    options = {action.dest: action for action in parser._actions}
    for each in arguments(config, device):
        known = each.known(ServerArgs)
        if version("sglang") == RELEASES[-1]:
            assert known.keys() == each.engine.keys()
        for name, value in known.items():
            choices, read = options[name].choices, options[name].type
            assert choices is None or value in choices, name
            assert isinstance(value, bool) or not callable(read) or read(str(value)) == value, name
        late = hasattr(ServerArgs, "resolve_once")  # 0.5.17 looks at the machine when it is made
        if late or device == "cpu":
            settings = ServerArgs(**known)
        if device == "cpu":
            if late:
                settings.resolve_once()
            settings.check_server_args()


def test_the_installed_release_takes_our_requests() -> None:
    """As the tokenizer manager looks at them; ``extra_key`` is what parts its prefix cache."""
    asked = probe(5, 2, 8, torch.float32) | {"extra_key": "salt"}
    taken = GenerateReqInput(**asked, rid="a" * 32, stream=True)
    taken.normalize_batch_and_arguments()
    assert taken.is_single and taken.extra_key == "salt"
    assert RadixKey(array("q", [1]), "salt").child_key(1) != RadixKey(array("q", [1]), "pepper").child_key(1)


def test_the_installed_release_has_the_names_that_we_wrote_down() -> None:
    release = version("sglang")
    assert release in RELEASES, "another release: write its names down beside the others, and run this test"
    assert set(inspect.signature(ServerArgs).parameters) == names(release)
