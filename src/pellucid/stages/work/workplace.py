"""Where work is done: device, workers and their room, found without starting anything; and the engine."""

from collections.abc import Iterator
from contextlib import contextmanager

from pellucid.errors import ParameterError, PlanError
from pellucid.stages.work.cluster_choice import Local, Scheduler, Slurm, Workplace, cluster_of
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.resources import (
    available_bytes,
    gpu_count,
    resident_bytes,
    resolve_device,
)


def workplace(cluster: str, device: str, memory: int | None) -> Workplace:
    """Return where `cluster` would compute and with how much room.

    Parameters
    ----------
    device : as asked for: auto, cpu, cuda, cuda:1
    memory : bytes that may be used: by all processes of this machine, or by each remote worker

    Raises
    ------
    ParameterError : a cluster or device that makes no sense
    PlanError : a scheduler that does not answer or has no workers; too little memory
    """
    chosen = cluster_of(cluster)
    if isinstance(chosen, Local):
        here = resolve_device(device).partition(":")[0]
        return Workplace(here, chosen.workers, _room_here(here, memory, chosen.workers))
    if isinstance(chosen, Scheduler):
        from pellucid.stages.work.cluster import seen_at

        seen = seen_at(chosen.address, device)
        free = seen.room_bytes if memory is None else min(memory, seen.room_bytes or memory)
        return Workplace(seen.device, seen.workers, free)
    return _in_jobs(chosen, device, memory)


@contextmanager
def opened_engine(cluster: str | None) -> Iterator[Engine]:
    """Give the engine of `cluster` (None: this process), its workers started; ends them after."""
    if cluster is None:
        yield InProcess()
        return
    from pellucid.stages.work.cluster import opened

    with opened(cluster_of(cluster)) as engine:
        yield engine


def _room_here(device: str, memory: int | None, workers: int) -> int | None:
    """Memory that each of `workers` may use beyond the program itself; None where nobody says."""
    if device != "cpu":
        free = available_bytes("cuda:0")
        return None if free is None else free // -(-workers // gpu_count())
    held, free = resident_bytes(), available_bytes("cpu")
    allowed = [] if memory is None else [memory - held]
    least = min([*allowed, *([] if free is None else [free])], default=None)
    if least is None:
        return None
    room = (least - workers * held) // workers  # every worker holds the program, as this process does
    if room <= 0:
        raise PlanError(
            f"memory: {workers} workers and this process take {(workers + 1) * held / 2**30:.3g} GiB "
            "before they begin, which is all that may be used. Allow more, or take fewer workers."
        )
    return room


def _in_jobs(cluster: Slurm, device: str, memory: int | None) -> Workplace:
    asked, name = cluster.asked, cluster.path.name
    there = ("cuda" if asked.gpus else "cpu") if device == "auto" else device.partition(":")[0]
    if there != "cuda":
        room = min(memory or asked.memory, asked.memory) - resident_bytes()
        if room <= 0:
            raise PlanError(
                f"memory: a job of {name} has less than the program itself takes "
                f"({resident_bytes() / 2**30:.2g} GiB). Ask for more."
            )
        return Workplace(there, asked.workers, room)
    if not asked.gpus:
        raise ParameterError(f"device: {device} was asked for, and {name} does not say gpus: 1.")
    if memory is None:
        raise PlanError(
            f"memory: the GPUs of {name} are not seen from here. Say how much to use of one: "
            "--memory 70GiB."
        )
    return Workplace(there, asked.workers, memory)
