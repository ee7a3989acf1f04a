"""The machine a run takes place on: which device, and how much memory is free there."""

import ctypes
import os
from pathlib import Path

from pellucid.errors import ParameterError, PellucidError, PlanError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
MEMINFO = Path("/proc/meminfo")
# Where a container states its limit and its use: version 2 of control groups, then version 1.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def return_freed_memory() -> None:
    """Have the C library hand memory back when it is freed, where it is glibc.

    By default it raises the size from which it does so to 32 MiB as a program goes on, and keeps what
    lies below: 1.2 volumes of a tile were held and not used (`benchmarks/restorer_memory.py`). Blocks below
    4 MiB, among them the slabs of FFTs, are still kept: fetching their pages anew costs time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, size in ((M_MMAP_THRESHOLD, 4 * 2**20), (M_TRIM_THRESHOLD, 8 * 2**20)):
        mallopt(parameter, size)


def resolve_device(wanted: str) -> str:
    """The torch device that `wanted` names; "auto" is a GPU if there is one, else the CPU.

    Raises
    ------
    ParameterError : a device that is not there, or no name of one
    """
    count = gpu_count()
    if wanted == "auto":
        return "cuda:0" if count else "cpu"
    if wanted == "cpu":
        return wanted
    name, _, number = wanted.partition(":")
    if name != "cuda" or not (number or "0").isdigit():
        raise ParameterError(f"device: expected auto, cpu, cuda or cuda:N, got {wanted!r}.")
    if int(number or 0) < count:
        return f"cuda:{number or 0}"
    there = f"there is cuda:0 to cuda:{count - 1}" if count else "this machine has no usable GPU"
    raise ParameterError(f"device: {wanted} was asked for and {there}. Use auto or cpu.")


def gpu_count() -> int:
    """How many GPUs this machine offers."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def describe_device(device: str) -> str:
    """The device in words: its name, and how many processors a CPU gives to the work."""
    import torch

    if device == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    if not gpu_count():
        return f"{device} (of other machines)"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def available_bytes(device: str) -> int | None:
    """Memory that is free on `device` now; None where the system does not say."""
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    known = [size for size in (_free_of_system(), *_free_of_container()) if size is not None]
    return min(known, default=None)


def failure(error: BaseException, name: str, device: str) -> PellucidError:
    """The error by which a volume of a series fails, in one sentence."""
    if isinstance(error, PellucidError):
        return error
    # what the traceback holds would keep the memory from the volumes that follow
    error.__traceback__ = None
    return PlanError(
        f"{name}: out of memory on {device}. Close what else runs there, take a crop, or choose another "
        "device."
    )


def _free_of_system() -> int | None:
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        # Not Linux: what is installed stands for what is free.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _free_of_container() -> list[int]:
    for limit, used in CGROUPS:
        try:
            return [int(limit.read_text()) - int(used.read_text())]
        except (OSError, ValueError):
            continue  # absent, or "max": no limit
    return []


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
