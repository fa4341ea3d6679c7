"""SGLang as encode, prefill and decode engine.

Pictures are prepared as transformers prepares them, and go through SGLang's vision tower where its release has one for
an encoder on its own, else through that of transformers.

How prefill and decode meet: prefill's ``source`` says where its bootstrap server is and what the prompt is; decode
then starts the request in its own engine under a fresh *room* number and answers the room as ``target``; prefill starts
the same request under that room, and SGLang moves the KV from one to the other by its own NIXL backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from components.engines.sglang.arguments import Arguments
from components.engines.sglang.decode import SGLangDecodeEngine
from components.engines.sglang.encode import EncoderCheckpoint, encoder_module
from components.engines.sglang.prefill import SGLangPrefillEngine
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.encode import TransformersEncodeEngine

if TYPE_CHECKING:
    from components.config import Topology
    from components.nixl_connect import Connector


def encode_engine(topology: Topology) -> TransformersEncodeEngine:
    torch.set_num_threads(topology.encode.threads)
    checkpoint = _checkpoint(topology, topology.encode.device)
    if (module := encoder_module()) is not None:
        arguments = Arguments.for_encode(checkpoint, topology)
        checkpoint = EncoderCheckpoint(**vars(checkpoint), arguments=arguments, module=module)
    return TransformersEncodeEngine(checkpoint)


def prefill_engine(topology: Topology, connector: Connector) -> SGLangPrefillEngine:
    settings = topology.prefill
    checkpoint = _checkpoint(topology, settings.device)
    arguments = Arguments.for_prefill(checkpoint, topology)
    return SGLangPrefillEngine(checkpoint, arguments, kv_tokens=settings.kv_tokens)


def decode_engine(topology: Topology, connector: Connector) -> SGLangDecodeEngine:
    settings = topology.decode
    checkpoint = _checkpoint(topology, settings.device)
    arguments = Arguments.for_decode(checkpoint, topology)
    return SGLangDecodeEngine(checkpoint, arguments, kv_tokens=settings.kv_tokens, max_batch=settings.max_batch)


def _checkpoint(topology: Topology, device: str) -> Checkpoint:
    return Checkpoint.open(
        topology.model.path, dtype=topology.model.dtype, device=device, max_context=topology.model.max_context
    )
