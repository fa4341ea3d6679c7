"""One-sided transfers between processes over NIXL, with leases, deadlines and typed failures.

    reader                                             exposer
    ------                                             -------
                                                       readable = await connector.create_readable(Descriptor(tensor))
                          ◀── readable.metadata() ──   (any transport, as JSON)
    read = await connector.begin_read(record, Descriptor(destination))
    await read.wait_for_completion()                   await readable.wait_for_completion()

``create_writable`` and ``begin_write`` are the other direction. The package needs numpy, pydantic and NIXL; torch
and a GPU only for memory that is theirs. ``docs/nixl_connect/`` explains each name.
"""

from .connector import Connector
from .counters import Counters, Flow, Totals
from .descriptor import Descriptor
from .device import Device, DeviceKind
from .errors import (
    BackendFailed,
    BadRecord,
    Cancelled,
    ConnectorClosed,
    DeadlineExceeded,
    DeviceUnavailable,
    InvalidBuffer,
    LeaseExpired,
    PeerLost,
    PeerUnknown,
    PoolExhausted,
    RecordConsumed,
    TransferError,
)
from .lanes import Lane
from .operations import ReadableOperation, ReadOperation, WritableOperation, WriteOperation
from .pool import Pool, Slot
from .record import RdmaMetadata, SerializedDescriptor, parse_record
from .states import OperationKind, OperationStatus

__all__ = [
    "BackendFailed",
    "BadRecord",
    "Cancelled",
    "Connector",
    "ConnectorClosed",
    "Counters",
    "DeadlineExceeded",
    "Descriptor",
    "Device",
    "DeviceKind",
    "DeviceUnavailable",
    "Flow",
    "InvalidBuffer",
    "Lane",
    "LeaseExpired",
    "OperationKind",
    "OperationStatus",
    "PeerLost",
    "PeerUnknown",
    "Pool",
    "PoolExhausted",
    "RdmaMetadata",
    "ReadOperation",
    "ReadableOperation",
    "RecordConsumed",
    "SerializedDescriptor",
    "Slot",
    "Totals",
    "TransferError",
    "WritableOperation",
    "WriteOperation",
    "parse_record",
]
