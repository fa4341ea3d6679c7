"""Memory that goes back to the system when work on something large is done.

glibc keeps what is freed, in as many arenas as eight a core: a process that once read long texts in several threads
stays as large as then, for ever. Elsewhere than on glibc nothing happens here.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None)


def few_arenas(number: int = 2) -> None:
    """Let all threads of this process share so many arenas; call it before they begin."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, number)


def give_back() -> None:
    """Return what is free to the system. It takes some milliseconds and does not hold the interpreter."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
