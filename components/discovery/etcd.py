"""The one place that imports etcd3, and what it takes to do so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# etcd3's generated code is refused by protobuf's C implementation. The choice is made once a process, at the first
# import of protobuf, by whoever that is: a process that imports protobuf itself must set this variable before.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
if "google.protobuf" in sys.modules:
    from google.protobuf.internal import api_implementation  # type: ignore[import-untyped]

    if api_implementation.Type() != "python":
        raise ImportError(
            "protobuf was imported before components.discovery, with its "
            f"{api_implementation.Type()!r} implementation, which etcd3 cannot use; import components.discovery first, "
            "or set PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python"
        )

# gRPC prepares every fork for a child that goes on using gRPC, and complains when its threads are busy then. Ours never
# do: whatever a panel forks becomes another program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import etcd3  # type: ignore[import-untyped]
import grpc  # type: ignore[import-untyped]
from etcd3 import etcdrpc
from etcd3.exceptions import Etcd3Exception  # type: ignore[import-untyped]

TIMEOUT = 2.0
"""Longest time for one question to etcd, in seconds."""

_OPTIONS = (
    # gRPC's own back-off grows to two minutes; an etcd that is back should be noticed in a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A watch on a node that lost power would wait for ever. etcd ends connections that ask more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
)


class EtcdLost(Exception):
    """etcd did not answer, or ended a watch; ask again."""


@dataclass(frozen=True)
class Entry:
    """One key and its value; a value of None is a key that has gone."""

    key: str
    value: bytes | None


class Etcd:
    """A blocking client for a cluster: for threads, never for the event loop. All methods raise ``EtcdLost``."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = list(endpoints)
        self._clients: dict[str, Any] = {}
        self._current = 0

    def put(self, key: str, value: bytes, lease: int) -> None:
        with self._asking() as client:
            client.put(key, value, lease=lease)

    def grant(self, ttl: int) -> int:
        """A new lease of ``ttl`` seconds."""
        with self._asking() as client:
            lease: int = client.lease(ttl).id
            return lease

    def keep(self, lease: int) -> bool:
        """Prolong the lease; False if it does not exist any more."""
        with self._asking() as client:
            return any(answer.TTL > 0 for answer in client.refresh_lease(lease))

    def revoke(self, lease: int) -> None:
        """End the lease; its keys go with it."""
        with self._asking() as client:
            client.revoke_lease(lease)

    def list(self, prefix: str) -> tuple[list[Entry], int]:
        """All keys under ``prefix``, and the revision at which that is true."""
        with self._asking() as client:
            answer = client.get_prefix_response(prefix)
            return [Entry(kv.key.decode(errors="replace"), kv.value) for kv in answer.kvs], answer.header.revision

    def watch(self, prefix: str, revision: int) -> Watch:
        """What happens under ``prefix`` after ``revision``."""
        with self._asking() as client:
            return Watch(client, prefix, revision + 1)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _asking(self) -> _Asking:
        endpoint = self._endpoints[self._current % len(self._endpoints)]
        client = self._clients.get(endpoint)
        if client is None:
            host, _, port = endpoint.rpartition(":")
            client = etcd3.client(host=host, port=int(port), timeout=TIMEOUT, grpc_options=_OPTIONS)
            client = self._clients.setdefault(endpoint, client)
        return _Asking(self, client)

    def next_endpoint(self) -> None:
        """The current member does not answer: ask another one from now on."""
        self._current += 1


class _Asking:
    """Turns each way in which etcd3 and gRPC say "not now" into ``EtcdLost``, and moves on to the next member."""

    def __init__(self, etcd: Etcd, client: Any) -> None:
        self._etcd = etcd
        self._client = client

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Etcd3Exception | grpc.RpcError):
            self._etcd.next_endpoint()
            raise EtcdLost(_describe(error)) from error


class Watch:
    """Iterates over the changes; ends by raising ``EtcdLost``, also after ``cancel`` from another thread.

    etcd3's own watcher runs a thread that never ends and does not say when the server has gone, so this asks through
    etcd3's stubs.
    """

    def __init__(self, client: Any, prefix: str, start_revision: int) -> None:
        key = prefix.encode()
        create = etcdrpc.WatchCreateRequest(
            key=key, range_end=etcd3.utils.increment_last_byte(key), start_revision=start_revision
        )
        requests = iter([etcdrpc.WatchRequest(create_request=create)])
        self._call = etcdrpc.WatchStub(client.channel).Watch(requests, metadata=client.metadata)

    def __iter__(self) -> Iterator[Entry]:
        try:
            for answer in self._call:
                if answer.canceled:
                    raise EtcdLost(f"the watch was ended by etcd (compacted at {answer.compact_revision})")
                for event in answer.events:
                    gone = event.type == event.DELETE
                    yield Entry(event.kv.key.decode(errors="replace"), None if gone else event.kv.value)
        except grpc.RpcError as error:
            raise EtcdLost(_describe(error)) from error
        raise EtcdLost("the watch ended")

    def cancel(self) -> None:
        self._call.cancel()


def _describe(error: Exception) -> str:
    """One line; gRPC's own text is a page."""
    details = error.details() if isinstance(error, grpc.Call) else ""
    return details or str(error) or type(error).__name__
