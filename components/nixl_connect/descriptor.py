"""One contiguous piece of memory: address, bytes, device, and the object that keeps it alive."""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .device import Device
from .errors import InvalidBuffer

if TYPE_CHECKING:
    from .connector import Connector


class Guard(Protocol):
    """Something that must not be reused while an operation may touch the memory: a pool's slot."""

    def retain(self) -> object: ...

    def release(self) -> object: ...


class Descriptor:
    """A buffer to expose, to fill, or to send.

    Made from
      * a torch tensor, a numpy array, or any object with ``__cuda_array_interface__``: contiguous, of any dtype and
      shape;
      * ``(array, device)``, for an array whose own type does not say where it is;
      * ``bytes`` (a source only), ``bytearray`` (it cannot be resized while the descriptor lives) or ``memoryview``;
      * ``(pointer, size in bytes, device, owner)``; ``owner`` is kept alive, and may be None.

    Never copies. Raises ``InvalidBuffer`` for memory that is not contiguous: a silent copy would send the bytes, and
    receive them, somewhere the caller does not look.
    """

    __slots__ = ("__weakref__", "device", "dtype", "guard", "owner", "ptr", "shape", "size", "writable")

    def __init__(self, data: Any) -> None:
        self.guard: Guard | None = None
        self.dtype: str | None = None
        self.shape: tuple[int, ...] | None = None
        self.writable = True
        self.device = Device("cpu")
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(data, torch.Tensor):
            self._from_tensor(data)
        elif isinstance(data, np.ndarray):
            self._from_array(data)
        elif isinstance(data, (bytes, bytearray, memoryview)):
            self._from_array(_bytes_as_array(data))
            self.dtype = self.shape = None
        elif hasattr(data, "__cuda_array_interface__"):
            self._from_cuda_array(data, Device("cuda:0"))
        elif isinstance(data, tuple) and len(data) == 2:
            array, device = data[0], Device(data[1])
            if device.is_host:
                self._from_array(np.asarray(array) if not isinstance(array, np.ndarray) else array)
            else:
                self._from_cuda_array(array, device)
        elif isinstance(data, tuple) and len(data) == 4:
            self.ptr, self.size, self.device, self.owner = int(data[0]), int(data[1]), Device(data[2]), data[3]
        else:
            raise InvalidBuffer(f"cannot describe a {type(data).__name__}")
        if self.ptr <= 0 or self.size <= 0:
            raise InvalidBuffer(f"an empty or null buffer: pointer {self.ptr:#x}, {self.size} bytes")

    def _from_tensor(self, tensor: Any) -> None:
        if not tensor.is_contiguous():
            raise InvalidBuffer(f"tensor of shape {tuple(tensor.shape)} is not contiguous: make it so, and keep it")
        if tensor.device.type not in ("cpu", "cuda"):
            raise InvalidBuffer(f"memory of {tensor.device} cannot be registered")
        self.ptr, self.size, self.owner = tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor
        self.device = Device(str(tensor.device))
        self.dtype, self.shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)

    def _from_array(self, array: np.ndarray[Any, Any]) -> None:
        if not array.flags.c_contiguous:
            raise InvalidBuffer(f"array of shape {array.shape} is not C-contiguous: make it so, and keep that one")
        if array.dtype.hasobject:
            raise InvalidBuffer("an array of Python objects has no bytes to move")
        self.ptr, self.size, self.owner = array.ctypes.data, array.nbytes, array
        self.writable = bool(array.flags.writeable)
        self.dtype, self.shape = array.dtype.name, tuple(array.shape)

    def _from_cuda_array(self, array: Any, device: Device) -> None:
        face = array.__cuda_array_interface__
        dtype, shape = np.dtype(face["typestr"]), tuple(face["shape"])
        dense = tuple(dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
        if face.get("strides") not in (None, dense):
            raise InvalidBuffer(f"device array of shape {shape} is not contiguous")
        self.ptr, self.size, self.owner = int(face["data"][0]), dtype.itemsize * math.prod(shape), array
        self.writable, self.device = not face["data"][1], device
        self.dtype, self.shape = dtype.name, shape

    def register_memory(self, connector: Connector) -> Awaitable[None]:
        """Register now, and keep the registration until ``deregister_memory``, ``connector.close()``, or the end of the
        memory's owner. Slices of a registered tensor need none of their own. Starts at once; await it to know that it
        worked (``BackendFailed``, ``DeviceUnavailable``)."""
        return connector.keep_registered(self)

    def deregister_memory(self, connector: Connector) -> Awaitable[None]:
        """End what ``register_memory`` began. Operations in flight keep the memory registered until they end."""
        return connector.end_registered(self)

    def part(self, offset: int, size: int) -> Descriptor:
        """``size`` bytes from byte ``offset``, sharing owner and registration."""
        if offset < 0 or size <= 0 or offset + size > self.size:
            raise InvalidBuffer(f"bytes {offset}..{offset + size} are not inside a buffer of {self.size}")
        piece = Descriptor((self.ptr + offset, size, self.device, self.owner))
        piece.writable, piece.guard = self.writable, self.guard
        return piece

    def __repr__(self) -> str:
        what = f", {self.dtype}{list(self.shape)}" if self.shape is not None else ""
        return f"Descriptor({self.ptr:#x}, {self.size} bytes, {self.device}{what})"


def _bytes_as_array(data: bytes | bytearray | memoryview) -> np.ndarray[Any, Any]:
    """A view that holds the buffer exported: a bytearray cannot be resized, and so not move, under the transfer."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise InvalidBuffer("the memoryview is not contiguous")
    if view.nbytes == 0:
        raise InvalidBuffer("an empty buffer")
    return np.frombuffer(view.cast("B"), dtype=np.uint8)


Buffers = Descriptor | list[Descriptor] | tuple[Descriptor, ...]


def as_list(buffers: Buffers) -> list[Descriptor]:
    """One descriptor or a non-empty sequence of them, as a list. Raises ``InvalidBuffer`` for anything else."""
    listed = [buffers] if isinstance(buffers, Descriptor) else list(buffers)
    if not listed or not all(isinstance(item, Descriptor) for item in listed):
        raise InvalidBuffer("expected a Descriptor or a non-empty list of Descriptors")
    return listed
