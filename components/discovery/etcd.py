"""The one place that imports etcd3, and what it takes to do so."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

SLOW = 1.0
"""Above this an answer is late: etcd, or the way to it, is in trouble. A healthy one answers in milliseconds, and the
leases are long enough for one such question to be asked before any of them can run out."""

CALM = 5.0
"""Seconds after the last trouble in which instances whose lease ran out may still register again."""

_PAGE = 16
"""Entries in one answer to ``list``: what strangers wrote there may be as long as etcd permits, 1.5 MB by default."""

_OPTIONS = (
    # gRPC's own back-off grows to two minutes; an etcd that is back should be noticed in a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A watch on a node that lost power would wait for ever. etcd ends connections that ask more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own limit would be the end of every view when one entry, or one page of them, is longer.
    ("grpc.max_receive_message_length", -1),
)


class EtcdLost(Exception):
    """etcd did not answer, or ended a watch; ask again."""


@dataclass(frozen=True)
class Entry:
    """One key and its value; a value of None is a key that has gone."""

    key: str
    value: bytes | None


class Etcd:
    """A blocking client for a cluster: for threads, never for the event loop. All methods raise ``EtcdLost``.

    Each question ends within ``TIMEOUT`` seconds. Raises ``ValueError`` for an endpoint that is not ``host:port``.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = [_host_port(endpoint) for endpoint in endpoints]
        self._clients: dict[tuple[str, int], Any] = {}
        self._current = 0
        self._lock = threading.Lock()
        self._asked: dict[object, float] = {}
        self._troubled = float("-inf")

    @property
    def troubled(self) -> bool:
        """Whether a question failed or was late within the last ``CALM`` seconds, or is late now.

        A lease that ran out meanwhile says nothing of its owner: it could not be kept either. A registry that keeps a
        lease of its own, as every panel's does, asks often enough to know.
        """
        now = time.monotonic()
        with self._lock:
            late = any(now - asked > SLOW for asked in self._asked.values())
            return late or now - self._troubled < CALM

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
        entries: list[Entry] = []
        start, revision, more = prefix.encode(), 0, True
        while more:
            # Of one revision, so that nothing is missed between two pages.
            answer = self._range(key=start, range_end=_end(prefix), limit=_PAGE, revision=revision)
            entries += [Entry(_text(kv.key), kv.value) for kv in answer.kvs]
            revision, more = revision or answer.header.revision, answer.more
            if more:
                start = answer.kvs[-1].key + b"\0"
        return entries, revision

    def get(self, key: str) -> bytes | None:
        """The value of ``key``, if there is one."""
        found = self._range(key=key.encode()).kvs
        value: bytes | None = found[0].value if found else None
        return value

    def watch(self, prefix: str, revision: int) -> Watch:
        """What happens under ``prefix`` after ``revision``."""
        with self._asking() as client:
            return Watch(self, client, prefix, revision + 1)

    def lost(self) -> None:
        """A member did not answer or ended a watch: the next question goes to another one."""
        with self._lock:
            self._current += 1
            self._troubled = time.monotonic()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _range(self, **request: object) -> Any:
        """The entries asked for, in the order of their keys. etcd3's own methods know no limit and no revision."""
        with self._asking() as client:
            return client.kvstub.Range(etcdrpc.RangeRequest(**request), TIMEOUT, metadata=client.metadata)

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """The client of the current member; each way in which etcd3 and gRPC say "not now" becomes ``EtcdLost``."""
        question, asked = object(), time.monotonic()
        with self._lock:
            self._asked[question] = asked
            client = self._client()
        try:
            yield client
        except (Etcd3Exception, grpc.RpcError) as error:
            self.lost()
            raise EtcdLost(_describe(error)) from error
        finally:
            now = time.monotonic()
            with self._lock:
                del self._asked[question]
                if now - asked > SLOW:
                    self._troubled = now

    def _client(self) -> Any:
        endpoint = self._endpoints[self._current % len(self._endpoints)]
        if endpoint not in self._clients:
            host, port = endpoint
            self._clients[endpoint] = etcd3.client(host=host, port=port, timeout=TIMEOUT, grpc_options=_OPTIONS)
        return self._clients[endpoint]


class Watch:
    """Iterates over the changes; ends by raising ``EtcdLost``, also after ``cancel`` from another thread.

    etcd3's own watcher runs a thread that never ends and does not say when the server has gone, so this asks through
    etcd3's stubs.
    """

    def __init__(self, etcd: Etcd, client: Any, prefix: str, start_revision: int) -> None:
        self._etcd = etcd
        self._cancelled = False
        create = etcdrpc.WatchCreateRequest(key=prefix.encode(), range_end=_end(prefix), start_revision=start_revision)
        requests = iter([etcdrpc.WatchRequest(create_request=create)])
        self._call = etcdrpc.WatchStub(client.channel).Watch(requests, metadata=client.metadata)

    def __iter__(self) -> Iterator[Entry]:
        try:
            for answer in self._call:
                if answer.canceled:
                    raise EtcdLost(f"the watch was ended by etcd (compacted at {answer.compact_revision})")
                for event in answer.events:
                    gone = event.type == event.DELETE
                    yield Entry(_text(event.kv.key), None if gone else event.kv.value)
        except grpc.RpcError as error:
            if not self._cancelled:
                self._etcd.lost()
            raise EtcdLost(_describe(error)) from error
        self._etcd.lost()
        raise EtcdLost("the watch ended")

    def cancel(self) -> None:
        self._cancelled = True
        self._call.cancel()


def _host_port(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError(f"an etcd endpoint is host:port, not {endpoint!r}")
    return host, int(port)


def _end(prefix: str) -> bytes:
    """The first key after all those that begin with ``prefix``."""
    end: bytes = etcd3.utils.increment_last_byte(prefix.encode())
    return end


def _text(key: bytes) -> str:
    """Strangers may write any bytes there."""
    return key.decode(errors="replace")


def _describe(error: Exception) -> str:
    """One line; gRPC's own text is a page."""
    details = error.details() if isinstance(error, grpc.Call) else ""
    return details or str(error) or type(error).__name__
