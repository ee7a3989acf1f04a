"""Where tiles are made: this process, workers of this machine, a Dask scheduler, or SLURM.

What is chosen is checked here without starting anything; Dask is imported only when it is used.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pellucid.errors import ParameterError
from pellucid.stages.parameters import Names, Parameters, size_in_bytes
from pellucid.stages.work.resources import (
    gpu_count,
)

FORMS = "expected local, local:N, tcp://host:port, or a SLURM file such as slurm.yaml"
ADDRESS = r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):(\d{1,5})"


class SlurmParameters(Parameters):
    """What a SLURM file says: the jobs that are submitted, one worker in each."""

    queue: str = Field(min_length=1, description="Partition that the jobs go to.")
    workers: int = Field(ge=1, description="Jobs, and so workers; a GPU job has one GPU.")
    memory: Annotated[int, BeforeValidator(size_in_bytes)] = Field(
        gt=0, description="Memory of a job, such as 64GiB."
    )
    cores: int = Field(1, ge=1, description="Processors of a job; its arithmetic uses as many threads.")
    gpus: int = Field(0, ge=0, le=1, description="1 for a GPU in each job.")
    walltime: str = Field(
        "04:00:00", pattern=r"^(\d+-)?\d{1,2}:\d\d:\d\d$", description="Longest time of a job, h:mm:ss."
    )
    account: str | None = Field(None, description="Account that pays.")
    interface: str | None = Field(None, description="Network that nodes and this machine share: ib0.")
    python: str | None = Field(None, description="Python on the nodes; else the one that runs here.")
    directives: Names = Field((), description="Further #SBATCH lines, such as --exclusive.")
    prologue: Names = Field((), description="Shell lines before the worker, such as module load.")
    logs: Path | None = Field(None, description="Folder for what the jobs say.")


@dataclass(frozen=True)
class Local:
    """Worker processes on this machine."""

    workers: int


@dataclass(frozen=True)
class Scheduler:
    """A Dask scheduler that runs already, with its workers."""

    address: str


@dataclass(frozen=True)
class Slurm:
    """Jobs that are submitted to SLURM."""

    path: Path
    asked: SlurmParameters


Cluster = Local | Scheduler | Slurm


@dataclass(frozen=True)
class Workplace:
    """What tiles are planned for.

    Parameters
    ----------
    workers : that compute at the same time
    room_bytes : that each may use beyond what the program itself takes; None where nobody says
    """

    device: str
    workers: int
    room_bytes: int | None


def cluster_of(text: str) -> Cluster:
    """Return the cluster that `--cluster` names; ParameterError for what names none."""
    if found := re.fullmatch(r"local(?::(\d+))?", text):
        workers = int(found[1]) if found[1] else gpu_count() or max(2, processors() // 4)
        if not 1 <= workers <= 1024:
            raise ParameterError(f"cluster: expected 1 to 1024 local workers, got {workers}.")
        return Local(workers)
    if "://" in text:
        known = re.fullmatch(ADDRESS, text)
        if known is None or not 0 < int(known[2]) < 2**16:
            raise ParameterError(f"cluster: {FORMS}, got {text!r}. A scheduler prints its address.")
        return Scheduler(text)
    if text.lower().endswith((".yaml", ".yml")):
        return Slurm(Path(text), _read_slurm(Path(text)))
    raise ParameterError(f"cluster: {FORMS}, got {text!r}.")


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_slurm(path: Path) -> SlurmParameters:
    import yaml  # type: ignore[import-untyped]

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"cluster: {path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"cluster: {path.name} is no YAML.") from error
    if not isinstance(content, dict):
        raise ParameterError(f"cluster: {path.name}: expected lines such as 'queue: normal'.")
    try:
        return SlurmParameters.checked({str(key): value for key, value in content.items()})
    except ParameterError as error:
        said = re.sub(r" \(--.*\)\. See --help\.", ". Say it in the file.", str(error))
        raise ParameterError(f"cluster: {path.name}: {said}") from error
