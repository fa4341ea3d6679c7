"""``RdmaMetadata``: all that the other side must know to read from, or write into, exposed memory.

It travels on whatever carries the application's messages, as JSON. Everything in it is checked before anything is done
with it: types and ranges by the model, integrity by the seal, addresses against the pools that its peer announced, and
its right to be used by the peer itself, when it is claimed.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, field_validator, model_validator

from .descriptor import Descriptor
from .errors import BadRecord, InvalidBuffer
from .states import OperationKind
from .wire import MAX_CLOCK

_MAX_ADDRESS = (1 << 64) - 1
_MAX_SIZE = 1 << 48
MAX_RECORD = 4 << 20
"""Bytes of a record as JSON: more is refused unread. The largest one that ``create_*`` makes of a pool has 2.5 MiB."""
MAX_BUFFERS = 1 << 14
MAX_REGIONS = 1 << 11
MAX_DIMENSIONS = 16
_MAX_COMPLAINT = 1000
"""Characters of what is said of a bad record: pydantic quotes what it was given."""
DTYPES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
"""Bytes of an element."""
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9._:@/-]+$")]
Info = Annotated[
    Mapping[Annotated[str, Field(max_length=128)], Annotated[str, Field(max_length=4096)]], Field(max_length=64)
]


@functools.cache
def host_id() -> str:
    """The machine this process runs on, container or not: the same for all that can share memory."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = socket.gethostname()
    return hashlib.blake2b(boot.encode(), digest_size=8).hexdigest()


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_fields(cls, data: Any) -> Any:
        # pydantic would complain of each one by name: 180 MB of words about 10 MB of a hostile record.
        if isinstance(data, dict) and len(data) > len(cls.model_fields):
            raise ValueError("fields that a record does not have")
        return data


class _Memory(_Record):
    device: str = Field(pattern=r"^(cpu|cuda:(0|[1-9][0-9]{0,2}))$")
    ptr: int = Field(gt=0, le=_MAX_ADDRESS, strict=True)
    size: int = Field(gt=0, le=_MAX_SIZE, strict=True)

    @model_validator(mode="after")
    def _inside_address_space(self) -> _Memory:
        if self.ptr + self.size > _MAX_ADDRESS:
            raise ValueError("the buffer ends outside the address space")
        return self


class SerializedDescriptor(_Memory):
    """One exposed buffer. ``region`` names the announced pool it lies in."""

    region: int = Field(ge=0, lt=1 << 31, strict=True)
    dtype: str | None = None
    shape: tuple[Annotated[int, Field(ge=0, le=_MAX_SIZE, strict=True)], ...] | None = Field(
        default=None, max_length=MAX_DIMENSIONS
    )

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        if value is not None and value not in DTYPES:
            raise ValueError(f"unknown dtype {value!r}")
        return value

    @model_validator(mode="after")
    def _shape_fills_it(self) -> SerializedDescriptor:
        # Who allocates by dtype and shape must get what is moved. An element of a dtype that has no name here has bytes
        # as well, only it is not said how many.
        if self.shape is not None:
            count = math.prod(self.shape)
            element = self.size // max(count, 1) if self.dtype is None else DTYPES[self.dtype]
            if count * element != self.size:
                raise ValueError(f"shape {list(self.shape)} of {self.dtype} is not {self.size} bytes")
        return self

    def to_descriptor(self) -> Descriptor:
        """The buffer's address *in its own process*, for arithmetic and display. It cannot be read from here."""
        return Descriptor((self.ptr, self.size, self.device, None))


class AnnouncedRegion(_Memory):
    """Registered memory of the exposing agent. ``nixl_metadata`` (base64) is there unless the reader has it already."""

    id: int = Field(ge=0, lt=1 << 31, strict=True)
    nixl_metadata: str | None = Field(default=None, max_length=1 << 21)

    def metadata_bytes(self) -> bytes | None:
        if self.nixl_metadata is None:
            return None
        try:
            return base64.b64decode(self.nixl_metadata, validate=True)
        except binascii.Error as error:
            raise BadRecord(f"region {self.id}: agent metadata is not base64: {error}") from None


class RdmaMetadata(_Record):
    """The record of one exposed operation. Immutable; ``model_dump_json`` and ``model_validate_json`` carry it.

    ``lease_until`` is on the exposer's own monotonic clock, which nobody can compare with another; a peer learns how it
    stands from the exposer's grants. Even then it is a hint: whether a lease is over is decided by the exposer, when
    the record is claimed. ``info`` is the application's: layout version, model revision, trace id.
    """

    version: Literal[2] = 2
    operation_kind: OperationKind
    peer: Name
    host: str = Field(pattern=r"^[0-9a-f]{16}$")
    generation: str = Field(pattern=r"^[0-9a-f]{16}$")
    notification_key: str = Field(pattern=r"^[0-9a-f]{32}$")
    descriptors: Annotated[tuple[SerializedDescriptor, ...], FailFast()] = Field(min_length=1, max_length=MAX_BUFFERS)
    regions: Annotated[tuple[AnnouncedRegion, ...], FailFast()] = Field(min_length=1, max_length=MAX_REGIONS)
    lease_until: float = Field(ge=0.0, le=MAX_CLOCK, allow_inf_nan=False)
    reader: Name | None = None
    info: Info = Field(default_factory=dict)
    seal: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")

    @field_validator("info")
    @classmethod
    def _in_one_order(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        return dict(sorted(value.items()))  # so that the seal does not depend on who serialized it

    @model_validator(mode="after")
    def _consistent(self) -> RdmaMetadata:
        if self.operation_kind is OperationKind.UNSPECIFIED:
            raise ValueError("an operation is a READ or a WRITE")
        pools = {region.id: region for region in self.regions}
        if len(pools) != len(self.regions):
            raise ValueError("a region is announced twice")
        for item in self.descriptors:
            pool = pools.get(item.region)
            if pool is None or item.device != pool.device:
                raise ValueError(f"region {item.region} is not announced for {item.device}")
            if item.ptr < pool.ptr or item.ptr + item.size > pool.ptr + pool.size:
                raise ValueError(f"buffer {item.ptr:#x}+{item.size} is outside announced region {item.region}")
        return self

    @property
    def identity(self) -> str:
        """Who exposes: ``name@generation``. A restart under the same name is another generation."""
        return f"{self.peer}@{self.generation}"

    @property
    def size(self) -> int:
        """Bytes of all buffers together."""
        return sum(item.size for item in self.descriptors)

    def computed_seal(self) -> str:
        """Digest of every field but the seal: what the exposer compares with what it issued under this key."""
        return hashlib.blake2b(self.model_dump_json(exclude={"seal"}).encode(), digest_size=16).hexdigest()

    def sealed(self) -> RdmaMetadata:
        return self.model_copy(update={"seal": self.computed_seal()})

    def check(self, kind: OperationKind, *, reader: str, expect: Mapping[str, str] | None = None) -> None:
        """Raise ``BadRecord`` unless this record is intact, for this kind of operation, for this reader, and its
        ``info`` holds every expected item, such as ``{"model_revision": "…"}``."""
        if self.operation_kind is not kind:
            raise BadRecord(f"a record for {self.operation_kind.name} cannot be used to {kind.name}")
        if self.seal != self.computed_seal():
            raise BadRecord("the record was altered or cut on its way: its seal does not fit")
        if self.reader is not None and self.reader != reader:
            raise BadRecord(f"the record is for {self.reader}, not for {reader}")
        for key, want in (expect or {}).items():
            if self.info.get(key) != want:
                raise BadRecord(f"{key} is {self.info.get(key)!r}, expected {want!r}")

    def to_descriptors(self) -> Descriptor | list[Descriptor]:
        """The exposed buffers: one alone, several as a list."""
        all_of_them = [item.to_descriptor() for item in self.descriptors]
        return all_of_them[0] if len(all_of_them) == 1 else all_of_them

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> RdmaMetadata:
        """Raises ``ValueError`` (pydantic's own, mostly) for what is no record."""
        if len(json_data) > MAX_RECORD:
            raise ValueError(f"a record of {len(json_data)} bytes: at most {MAX_RECORD} are read")
        return super().model_validate_json(json_data, **options)

    def __hash__(self) -> int:
        return hash((self.notification_key, self.seal))


_reader = TypeAdapter[str | None](Name | None)
_info = TypeAdapter[Mapping[str, str]](Info)


def check_own(buffers: Sequence[Descriptor], reader: str | None, info: Mapping[str, str]) -> None:
    """Before anything is exposed: would a peer take a record of it? Raises ``InvalidBuffer``, or ``ValueError`` for the
    arguments."""
    if len(buffers) > MAX_BUFFERS:
        raise InvalidBuffer(f"{len(buffers)} buffers: a record has at most {MAX_BUFFERS}")
    for buffer in buffers:
        if buffer.size > _MAX_SIZE or (buffer.shape is not None and len(buffer.shape) > MAX_DIMENSIONS):
            raise InvalidBuffer(f"{buffer} does not fit into a record")
    _reader.validate_python(reader)
    _info.validate_python(info)


def parse_record(data: Any) -> RdmaMetadata:
    """A record from JSON text, JSON bytes or a mapping. Raises ``BadRecord`` for anything that is not one."""
    try:
        if isinstance(data, (str, bytes, bytearray)):
            return RdmaMetadata.model_validate_json(data)
        return RdmaMetadata.model_validate(data)
    except ValueError as error:
        raise BadRecord(str(error)[:_MAX_COMPLAINT]) from None
