"""The NIXL agent of this process: the only file that calls NIXL. Every method belongs to the owner thread.

NIXL's Python package is imported when the agent is made, after the environment that UCX reads at load time is set.
Errors of NIXL become this package's; ``deserialize_descs`` is never used, because it unpickles.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from types import ModuleType
from typing import Any

from . import cuda
from .device import Device
from .errors import BackendFailed, BadRecord, DeviceUnavailable, PeerLost, TransferError
from .states import OperationKind

logger = logging.getLogger(__name__)
Span = tuple[int, int, int]
"""Address, bytes, index of the device: NIXL's own triple."""


class Progress(Enum):
    MOVING = "PROC"
    LANDED = "DONE"
    FAILED = "ERR"


def load_nixl() -> tuple[ModuleType, ModuleType]:
    """NIXL's API and its bindings, from whichever build can be loaded. Raises ``BackendFailed`` when none can."""
    # NIXL's logger prints every agent to stdout and switches logging.raiseExceptions off for the whole process.
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
    raise_exceptions = logging.raiseExceptions
    broken: list[str] = []
    try:
        for package in ("nixl", "nixl_cu13", "nixl_cu12"):
            try:
                api = importlib.import_module(f"{package}._api")
                return api, api.nixlBind
            except Exception as error:  # noqa: BLE001 - a foreign package may raise anything while it is imported
                if not isinstance(error, ModuleNotFoundError) or error.name not in (package, f"{package}._api"):
                    broken.append(f"{package}: {error}")
    finally:
        logging.raiseExceptions = raise_exceptions
    if broken:
        raise BackendFailed(
            f"NIXL is installed and cannot be loaded ({'; '.join(broken)}): install what is missing, put a library's "
            "folder into LD_LIBRARY_PATH, or install the build for this machine's CUDA (nixl-cu12, nixl-cu13)"
        )
    raise BackendFailed("NIXL is not installed: install nixl-cu12 or nixl-cu13")


class _Translated:
    """NIXL's errors become this package's. No generator: that costs more than most of the calls it guards."""

    __slots__ = ("_bindings", "_peer")

    def __init__(self, bindings: ModuleType, peer: str) -> None:
        self._bindings, self._peer = bindings, peer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        bindings, peer = self._bindings, self._peer
        if isinstance(error, (bindings.nixlRemoteDisconnectError, bindings.nixlCancelledError)):
            raise PeerLost(f"the connection to {peer} broke ({error})") from error
        if isinstance(error, (bindings.nixlMismatchError, bindings.nixlInvalidParamError)):
            raise BadRecord(f"NIXL refused what came from {peer} ({error})") from error
        # NIXL's other errors, and whatever its binding makes of a C++ exception or of an argument that it cannot take.
        if isinstance(error, Exception) and not isinstance(error, TransferError):
            raise BackendFailed(f"{peer}: {type(error).__name__} {error}") from error


class Agent:
    """One NIXL agent with its backends.

    ``device`` is the CUDA device whose context must be current first, or None for a process that moves host memory
    only.
    ``ucx`` holds UCX settings without their prefix, such as ``{"TLS": "tcp,cma"}``: they count only if no agent was
    made in this process before, and an environment variable that is already set wins. Raises ``BackendFailed`` or
    ``DeviceUnavailable`` when it cannot be made; another one, with other settings, may be made after that.
    """

    def __init__(self, name: str, backends: Sequence[str], device: Device | None, ucx: Mapping[str, str]) -> None:
        settings = dict(ucx)
        if cuda.driver() is not None:
            # Without NVLink UCX switches GET over cuda_ipc off, and a READ of GPU memory falls to 0.43 GB/s.
            settings.setdefault("CUDA_IPC_ENABLE_GET_ZCOPY", "y")
        added = {f"UCX_{key}": value for key, value in settings.items() if f"UCX_{key}" not in os.environ}
        self.name, self.device = name, device
        self._current: Device | None = None
        os.environ.update(added)
        try:
            if device is not None:
                self.make_current(device)
            self._api, self._bindings = load_nixl()
            self._make(backends)
        except BaseException:
            for key in added:
                os.environ.pop(key, None)
            raise

    def _make(self, backends: Sequence[str]) -> None:
        try:
            with self._translated(self.name):
                config = self._api.nixl_agent_config(enable_prog_thread=False, backends=[])
                self._nixl = self._api.nixl_agent(self.name, config)
                for backend in backends:
                    self._nixl.create_backend(backend, {})
        except TransferError as error:
            given = {key: value for key, value in sorted(os.environ.items()) if key.startswith("UCX_")}
            raise BackendFailed(
                f"no NIXL agent with the backends {', '.join(backends)} can be made ({error}); UCX has the settings "
                f"{given}, its own words are on stderr, and UCX_LOG_LEVEL=info says more"
            ) from error

    def close(self) -> None:
        """Destroy the agent, with its threads, sockets and shared memory. Nothing may be in flight; nothing else may be
        called any more."""
        self._nixl = None

    def make_current(self, device: Device) -> None:
        """Make a CUDA device's context current on this thread; nothing for the host."""
        if device.is_host or device == self._current:
            return
        found = cuda.driver()
        if found is None or device.id >= found.device_count:
            raise DeviceUnavailable(f"{device} is not there: no usable CUDA driver, or fewer devices than that")
        found.make_current(device)
        self._current = device

    def _translated(self, peer: str) -> _Translated:
        return _Translated(self._bindings, peer)

    # memory

    def register(self, span: Span, device: Device) -> Any:
        """Register memory; the result is what ``deregister`` and ``metadata`` take."""
        if not device.is_host and self.device is None:
            raise DeviceUnavailable(
                f"this connector was started without a CUDA context, so {device} would be reached by a software path: "
                f"make it with Connector(device='{device}'), or use CUDA before its first operation"
            )
        self.make_current(device)
        with self._translated(self.name):
            return self._nixl.register_memory([(*span, "")], device.kind.nixl_mem_type)

    def deregister(self, registration: Any) -> None:
        with self._translated(self.name):
            self._nixl.deregister_memory(registration)

    def metadata(self, registration: Any | None = None) -> bytes:
        """Connection information, with the keys of that one registration, or of none: never the whole agent's."""
        with self._translated(self.name):
            descriptors = self._bindings.nixlRegDList(self._bindings.DRAM_SEG) if registration is None else registration
            return bytes(self._nixl.get_partial_agent_metadata(descriptors, True, list(self._nixl.backends)))

    # peers

    def load_peer(self, metadata: bytes) -> str:
        """Load, or add to, what is known of a peer. Returns the agent name that the metadata itself holds."""
        if self.device is not None:
            self.make_current(self.device)
        with self._translated("a peer"):
            try:
                name = self._nixl.add_remote_agent(metadata)
            except self._bindings.nixlBackendError as error:
                # It died before we ever spoke to it. UCX keeps a socket of each connection that was refused.
                raise PeerLost(f"no connection to the peer ({error})") from error
            try:
                return name.decode() if isinstance(name, bytes) else str(name)
            except UnicodeDecodeError:
                self._nixl.remove_remote_agent(name)
                raise BadRecord("agent metadata of an agent whose name is no text") from None

    def drop_peer(self, name: str) -> None:
        try:
            with self._translated(name):
                self._nixl.remove_remote_agent(name)
        except TransferError as error:
            logger.debug("dropping %s: %s", name, error)

    def notify(self, peer: str, message: bytes) -> None:
        with self._translated(peer):
            self._nixl.send_notif(peer, message)

    def notifications(self) -> dict[str, list[bytes]]:
        """What has come since the last call; drives progress as well. Nothing is retained inside NIXL.

        Raises ``BadRecord`` when one of the senders has a name that is no text: anybody may call himself so. NIXL hands
        out all messages or none, so those that came together with his are lost; claims are sent again.
        """
        with self._translated(self.name):
            try:
                found: dict[str | bytes, list[bytes]] = self._nixl.get_new_notifs()
            except UnicodeDecodeError as error:
                raise BadRecord(f"a notification from an agent whose name is no text ({error})") from None
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}

    # transfers

    def _spans(self, spans: Sequence[Span], device: Device) -> Any:
        return self._nixl.get_xfer_descs(list(spans), device.kind.nixl_mem_type)

    def prepare(
        self,
        kind: OperationKind,
        local: Sequence[Span],
        local_device: Device,
        remote: Sequence[Span],
        remote_device: Device,
        peer: str,
    ) -> Any:
        """A handle for one transfer of equally long lists; nothing moves yet."""
        self.make_current(local_device)
        with self._translated(peer):
            return self._nixl.initialize_xfer(
                kind.name, self._spans(local, local_device), self._spans(remote, remote_device), peer
            )

    def post(self, handle: Any, peer: str) -> Progress:
        with self._translated(peer):
            return Progress(self._nixl.transfer(handle))

    def check(self, handle: Any, peer: str) -> Progress:
        with self._translated(peer):
            return Progress(self._nixl.check_xfer_state(handle))

    def release(self, handle: Any, peer: str) -> None:
        """Free a handle. Only for one that is terminal, or when the process gives it up for good."""
        with self._translated(peer):
            self._nixl.release_xfer_handle(handle)
