"""Every setting of a topology, with its default and what it does; ``docs/configuration.md`` is made from this file."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from components.config.types import (
    Arguments,
    Bytes,
    Count,
    Device,
    Devices,
    Endpoints,
    Name,
    NatsUrls,
    Port,
    Positive,
    Seconds,
    Strings,
)

REPOSITORY = Path(__file__).resolve().parents[2]

MIB = 2**20


class Section(BaseModel):
    """Base of all settings: immutable, unknown keys refused, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _half_the_cores() -> int:
    # Prefill and decode work at the same time, so each takes half of what this process may use.
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _find_model(path: str) -> str:
    """The absolute folder, if the working directory or the repository has it; else the hub name as it is."""
    for base in (Path.cwd(), REPOSITORY):
        folder = base / Path(path).expanduser()
        if folder.is_dir():
            return str(folder.resolve())
    return path


def _last_part(data: dict[str, Any]) -> str:
    return PurePath(data.get("path", "")).name


class Model(Section):
    path: Annotated[str, AfterValidator(_find_model), Field(min_length=1, validate_default=True)] = Field(
        default="models/tiny-vl",
        description="Folder of the model (relative to the working directory or the repository), or its hub name.",
    )
    name: Annotated[str, Field(min_length=1)] = Field(
        default_factory=_last_part,
        description="The name that clients ask for. Left out: the last part of `path`.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of weights, embeddings and KV; `auto` is float32 on a CPU, bfloat16 on a GPU."
    )
    max_context: Positive | None = Field(
        default=None, description="Most tokens of prompt and answer together. Left out: what the model allows."
    )


class Nats(Section):
    servers: NatsUrls = Field(
        default=(),
        description="URLs of the NATS servers (`nats://host:4222`). Empty: `triptych up` starts its own on `port`.",
    )
    port: Port = Field(
        default=4222,
        description="Port of the embedded server. Not set here and in use: `triptych up` takes another and says so.",
    )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to connect: the named servers, or the embedded one."""
        return self.servers or (f"nats://127.0.0.1:{self.port}",)


class Etcd(Section):
    endpoints: Endpoints = Field(
        default=(),
        description="`host:port` of the etcd members. Empty: `triptych up` starts its own on `port` and `peer_port`.",
    )
    port: Port = Field(
        default=2379,
        description="Client port of the embedded etcd. Not set here and in use: `triptych up` takes another.",
    )
    peer_port: Port = Field(
        default=2380,
        description="Peer port of the embedded etcd. Not set here and in use: `triptych up` takes another.",
    )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to connect, as ``host:port``: the named members, or the embedded one."""
        return self.endpoints or (f"127.0.0.1:{self.port}",)


class Transfer(Section):
    backends: Strings = Field(default=("UCX",), description="NIXL backends, in order of preference.")
    ucx_tls: str | None = Field(default=None, description="UCX transports (`UCX_TLS`). Left out: UCX chooses.")
    ucx_net_devices: str | None = Field(
        default=None,
        description="UCX devices (`UCX_NET_DEVICES`); `all` opens every one. Left out: `lo` where NATS and etcd are "
        "reached over loopback, so that nobody elsewhere can take part; else UCX chooses.",
    )
    lease_seconds: Seconds = Field(
        default=30.0, description="How long an embedding, or SGLang's or TensorRT-LLM's KV, waits for the other side."
    )
    deadline_seconds: Seconds = Field(
        default=10.0, description="Longest time for the bytes of one transfer; what is computed before does not count."
    )


class Frontend(Section):
    replicas: Count = Field(default=1, description="Processes; the second listens on `port` + 1, and so on.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; `0.0.0.0` for all.")
    port: Port = Field(default=8000, description="HTTP port (`triptych up --port`).")
    body_limit_bytes: Bytes = Field(default=32 * MIB, description="Longest request body; above it the answer is 413.")
    request_timeout_seconds: Seconds = Field(
        default=120.0, description="Longest time for one request, from its first byte to the last of its answer."
    )
    pool_bytes: Bytes = Field(
        default=128 * MIB, description="Host memory in which pictures sent as `data:` URLs wait for the encode worker."
    )
    max_text_bytes: Bytes = Field(
        default=4 * MIB,
        description="Longest request body without the base64 of its pictures. Less where NATS' `max_payload` is less.",
    )
    max_messages: Positive = Field(default=2048, description="Most messages in one request.")
    max_parts: Positive = Field(default=2048, description="Most parts of messages in one request, pictures included.")
    max_images: Positive = Field(default=16, description="Most pictures in one request.")
    client_timeout_seconds: Seconds = Field(
        default=20.0,
        description="Longest wait for a client: to send the headers of a request, and to take something of an answer.",
    )
    cors_origins: Strings = Field(
        default=(),
        description="Origins of web pages that may use the API from a browser (`https://chat.example`); `*` for all.",
    )


class Processor(Section):
    replicas: Count = Field(default=1, description="Processes.")


class Media(Section):
    max_bytes: Bytes = Field(default=20 * MIB, description="Longest encoded picture (the file, not its pixels).")
    max_pixels: Positive = Field(
        default=40_000_000,
        description="Most pixels (width x height); checked from the header, before anything is decoded.",
    )
    timeout_seconds: Seconds = Field(default=10.0, description="Longest time to fetch one picture, redirects included.")
    max_redirects: Count = Field(
        default=3, description="Most redirects to follow; each target is checked like the first URL."
    )
    allow_http: bool = Field(default=True, description="Fetch `http://` URLs too, not only `https://`.")
    allow_private_networks: bool = Field(
        default=False,
        description="Fetch from loopback, link-local and private addresses too. Only for trusted clients.",
    )


class Encode(Section):
    replicas: Count = Field(default=1, description="Processes.")
    device: Device = Field(default="auto", description="`cpu`, `cuda`, `cuda:N`, or `auto`: the GPU if there is one.")
    devices: Devices = Field(
        default=(),
        description="Devices that `triptych up` deals to the replicas in turn. Empty: all of them run on `device`.",
    )
    threads: Positive = Field(
        default_factory=_half_the_cores, description="CPU threads for tensors. Left out: half of the cores."
    )
    pool_bytes: Bytes = Field(
        default=128 * MIB,
        description="Registered memory that holds finished embeddings; the oldest unused one gives way.",
    )
    max_batch_images: Positive = Field(default=8, description="Most pictures through the vision tower at once.")
    batch_window_ms: Annotated[float, Field(ge=0.0)] = Field(
        default=2.0, description="How long the first picture of a batch waits for others."
    )
    media: Media = Field(default_factory=lambda: Media(), description="What may be fetched and decoded.")


class Prefill(Section):
    replicas: Count = Field(default=1, description="Processes.")
    device: Device = Field(default="auto", description="`cpu`, `cuda`, `cuda:N`, or `auto`: the GPU if there is one.")
    devices: Devices = Field(
        default=(),
        description="Devices that `triptych up` deals to the replicas in turn. Empty: all of them run on `device`.",
    )
    threads: Positive = Field(
        default_factory=_half_the_cores, description="CPU threads for tensors. Left out: half of the cores."
    )
    kv_tokens: Positive = Field(default=16_384, description="Tokens of KV memory: bounds the prompts in work at once.")
    max_batch_tokens: Positive = Field(default=4_096, description="Most prompt tokens computed in one step.")
    engine_arguments: Arguments = Field(
        default={}, description="Arguments of the engine by its own names, over those it gets anyway (`sglang` only)."
    )


class Decode(Section):
    replicas: Count = Field(default=1, description="Processes.")
    device: Device = Field(default="auto", description="`cpu`, `cuda`, `cuda:N`, or `auto`: the GPU if there is one.")
    devices: Devices = Field(
        default=(),
        description="Devices that `triptych up` deals to the replicas in turn. Empty: all of them run on `device`.",
    )
    threads: Positive = Field(
        default_factory=_half_the_cores, description="CPU threads for tensors. Left out: half of the cores."
    )
    kv_tokens: Positive = Field(default=32_768, description="Tokens of KV memory, shared by all running requests.")
    block_tokens: Positive = Field(
        default=16, description="Tokens in a block, the unit in which KV memory is given out."
    )
    max_batch: Positive = Field(default=16, description="Most requests in one decode step.")
    max_waiting: Count = Field(
        default=64, description="Most requests waiting for memory or a place in the batch; above it the answer is 429."
    )
    engine_arguments: Arguments = Field(
        default={}, description="Arguments of the engine by its own names, over those it gets anyway (`sglang` only)."
    )

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        if self.kv_tokens % self.block_tokens:
            raise ValueError(f"kv_tokens ({self.kv_tokens}) is not a multiple of block_tokens ({self.block_tokens})")
        return self


def _is_loopback(address: str) -> bool:
    """Whether ``nats://host:port`` or ``host:port`` leads to this machine alone, whatever a resolver says of it."""
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or no address at all
        return False


class Topology(Section):
    """All settings of one deployment; every process of it reads the same file."""

    namespace: Name = Field(default="default", description="Keeps deployments apart that share NATS and etcd.")
    engine: Literal["transformers", "sglang", "tensorrt-llm"] = Field(
        default="transformers",
        description="What computes: `transformers`, `sglang` or `tensorrt-llm`, see `docs/engines.md`.",
    )
    drain_seconds: Seconds = Field(
        default=30.0, description="How long running requests may go on after a stop signal before they are cut."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line logged."
    )
    model: Model = Field(default_factory=lambda: Model(), description="Which model is served.")
    nats: Nats = Field(default_factory=lambda: Nats(), description="The request plane.")
    etcd: Etcd = Field(default_factory=lambda: Etcd(), description="Discovery.")
    transfer: Transfer = Field(default_factory=lambda: Transfer(), description="The data plane.")
    frontend: Frontend = Field(default_factory=lambda: Frontend(), description="HTTP.")
    processor: Processor = Field(default_factory=lambda: Processor(), description="Templates, tokens, text.")
    encode: Encode = Field(default_factory=lambda: Encode(), description="Pictures to embeddings.")
    prefill: Prefill = Field(default_factory=lambda: Prefill(), description="Prompts to KV.")
    decode: Decode = Field(default_factory=lambda: Decode(), description="KV to answers.")

    @property
    def on_one_machine(self) -> bool:
        """Whether NATS and etcd are reached over loopback only: no process of another machine can be part of it."""
        return all(_is_loopback(address) for address in (*self.nats.addresses, *self.etcd.addresses))

    @property
    def ucx(self) -> dict[str, str]:
        """What to set of UCX, without its prefix; a variable of the environment wins over it.

        UCX listens on every interface that it may use, for whoever connects.
        """
        devices = self.transfer.ucx_net_devices or ("lo" if self.on_one_machine else None)
        settings = {"TLS": self.transfer.ucx_tls, "NET_DEVICES": devices}
        return {name: value for name, value in settings.items() if value is not None}

    @model_validator(mode="after")
    def _arguments_for_whom(self) -> Self:
        if self.engine != "sglang" and (self.prefill.engine_arguments or self.decode.engine_arguments):
            raise ValueError(f"engine_arguments: the {self.engine} engine takes none")
        return self
