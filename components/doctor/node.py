"""What the machine and its limits give: locked memory, shared memory, the clock, GPUs and what hides them."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from components.doctor.finding import Finding
from components.nixl_connect import BackendFailed
from components.nixl_connect.agent import load_nixl

MIB = 2**20
INFINIBAND = Path("/sys/class/infiniband")
SHARED_MEMORY = Path("/dev/shm")
_NVIDIA_DEVICES = "nvidia[0-9]*"

_SHM_FAIL, _SHM_WARN = 32 * MIB, 1024 * MIB
"""UCX takes a few MiB of /dev/shm a process; torch and NCCL, which SGLang and TensorRT-LLM use, take hundreds."""

_STA_UNSYNC = 0x40
"""``adjtimex``: the kernel's clock is not kept by NTP or PTP (linux/timex.h)."""

_BUILT = 1_735_689_600
"""2025-01-01: a clock before that has never been set."""


def check_nixl() -> Finding:
    """NIXL's own libraries load, from whichever build is installed."""
    try:
        api, _ = load_nixl()
    except (BackendFailed, ImportError, OSError) as error:
        return Finding(
            "nixl",
            "fail",
            f"NIXL does not load: {error}",
            "pip install nixl-cu12==1.5.1 (nixl-cu13 beside CUDA 13); for RDMA built from source: container/",
        )
    return Finding("nixl", "ok", f"loaded from {Path(str(api.__file__)).parent.name}")


def check_memlock(limit: int | None = None, infiniband: Path = INFINIBAND) -> Finding:
    """Registered memory is locked where an RDMA card reads it, so the limit bounds every pool."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if limit is None else limit
    cards = sorted(each.name for each in infiniband.iterdir()) if infiniband.is_dir() else []
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft / MIB:,.0f} MiB"
    numbers: dict[str, float | str] = {"memlock": text, "rdma": ",".join(cards)}
    if soft == resource.RLIM_INFINITY:
        return Finding("memlock", "ok", f"unlimited; RDMA cards: {', '.join(cards) or 'none'}", numbers=numbers)
    if not cards:
        return Finding("memlock", "ok", f"{text}; no RDMA card, so nothing is locked", numbers=numbers)
    return Finding(
        "memlock",
        "fail",
        f"{text}, and {', '.join(cards)} must lock all memory that NIXL registers",
        "unlimited: `ulimit -l unlimited`; `* - memlock unlimited` in /etc/security/limits.conf; in a container "
        "`ulimits: {memlock: -1}` and the capability IPC_LOCK",
        numbers,
    )


def check_shm(folder: Path = SHARED_MEMORY) -> Finding:
    """UCX's shared-memory lanes and the engines' worker processes live in /dev/shm."""
    change = "in a container: `shm_size: 16gb` (compose), an emptyDir of medium Memory at /dev/shm (Kubernetes)"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("shm", "fail", f"{folder}: {error.strerror}", change)
    numbers: dict[str, float | str] = {"free_bytes": free}
    says = f"{free / MIB:,.0f} MiB free in {folder}"
    if free < _SHM_FAIL:
        return Finding("shm", "fail", says, change, numbers)
    if free < _SHM_WARN:
        return Finding("shm", "warn", f"{says}: engines on several GPUs need more", change, numbers)
    return Finding("shm", "ok", says, numbers=numbers)


def check_clock(now: float | None = None, kernel_status: int | None = None) -> Finding:
    """Leases and deadlines cross hosts as times of day, so hosts' clocks must agree within seconds."""
    now = time.time() if now is None else now
    if now < _BUILT:
        return Finding(
            "clock",
            "fail",
            f"it says {time.strftime('%Y-%m-%d', time.gmtime(now))}",
            "set it: `timedatectl set-ntp true`, or start chrony",
        )
    status = _kernel_clock() if kernel_status is None else kernel_status
    if status is not None and status & _STA_UNSYNC:
        return Finding(
            "clock",
            "warn",
            "nothing keeps it right: the kernel says it is not synchronised",
            "on several nodes run chrony or PTP: leases cross hosts as times of day",
        )
    return Finding("clock", "ok", "synchronised" if status is not None else "plausible; the kernel does not say more")


def _kernel_clock() -> int | None:
    """The status bits of the kernel's clock, or None where they cannot be read."""
    # struct timex: an int, longs and ints, 208 bytes on 64-bit Linux; status is the int after four longs and one.
    room = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "adjtimex") or libc.adjtimex(room) < 0:
        return None
    return int.from_bytes(room.raw[40:44], "little")


def check_gpus(seen: int | None, devices: Path = Path("/dev"), environ: Mapping[str, str] = os.environ) -> Finding:
    """Whether this process sees the GPUs that the machine shows. ``seen`` is how many the driver gives, None: none."""
    present = len(list(devices.glob(_NVIDIA_DEVICES)))
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    numbers: dict[str, float | str] = {"present": present, "visible": seen or 0}
    if not present and not seen:
        return Finding("gpu", "ok", "none: everything runs on the CPU", numbers=numbers)
    if not seen:
        why = f"CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else "libcuda.so.1 does not load or start"
        return Finding(
            "gpu",
            "fail",
            f"{present} in /dev, and this process can use none: {why}",
            "unset CUDA_VISIBLE_DEVICES, or start the container with the NVIDIA runtime (`nvidia-smi` must work in it)",
            numbers,
        )
    if seen < present:
        return Finding(
            "gpu",
            "warn",
            f"{seen} of {present} are visible (CUDA_VISIBLE_DEVICES={hidden}): UCX has no cuda_ipc lane to a hidden "
            "peer and falls back to TCP",
            "give each role all GPUs and choose with `encode.device: cuda:0`, … instead",
            numbers,
        )
    return Finding("gpu", "ok", f"{seen} visible", numbers=numbers)


_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def check_environment(environ: Mapping[str, str] = os.environ) -> Finding:
    """Variables that switch the fast lanes off without a word."""
    for name in _ALLOCATOR:
        if "expandable_segments:true" in environ.get(name, "").lower().replace(" ", ""):
            return Finding(
                "environment",
                "fail",
                f"{name} has expandable_segments: such memory cannot be mapped by another process, NIXL falls to "
                "TCP emulation (0.3 GB/s instead of 200)",
                f"take expandable_segments out of {name}",
            )
    transports = environ.get("UCX_TLS", "all").split(",")
    if not transports[0].startswith("^") and not {"tcp", "all"} & set(transports):
        return Finding(
            "environment",
            "fail",
            f"UCX_TLS={','.join(transports)} has no tcp: NIXL cannot make its agent without it",
            "add tcp to UCX_TLS (setting transfer.ucx_tls)",
        )
    if environ.get("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "y").lower() in ("n", "no", "0", "off", "try"):
        return Finding(
            "environment",
            "warn",
            "UCX_CUDA_IPC_ENABLE_GET_ZCOPY is off: without NVLink a READ of GPU memory goes at 0.4 GB/s",
            "unset it; the connector sets it to y",
        )
    return Finding("environment", "ok", "no variable that slows transfers")
