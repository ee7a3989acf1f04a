"""Training on several devices: one process for each, started by torchrun, gradients averaged.

    torchrun --standalone --nproc-per-node 4 --no-python pellucid train recipe.yaml

Every process trains on pairs of its own and holds the same weights; the first one looks, writes and
speaks. Alone, a process is the first of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def member() -> tuple[int, int]:
    """Return which of how many this process is, while they train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Say whether this process is the one that writes and speaks, now or when the training is over."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def together(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did; gives the device that is this one's own."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def averaging(net: torch.nn.Module) -> torch.nn.Module:
    """Return the network with its gradients averaged over all processes; itself where there is one."""
    return DistributedDataParallel(net) if member()[1] > 1 else net


def from_first(value: float, device: str) -> float:
    """Return what the first process has, so that all decide alike."""
    if member()[1] == 1:
        return value
    told = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return float(told)
