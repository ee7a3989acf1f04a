"""What a worker of a cluster does: open the task beside the manifest, do one piece, list it.

Nothing but the path of the task, its checksum and a key comes through the scheduler; what goes back is
what is listed, and timings.
"""

import hashlib
import json
import logging
import os
import pickle
import socket
import threading
import time
import uuid
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from pellucid import __version__
from pellucid.data.manifest import TASK_SUFFIX, record_beside, synchronise, synchronise_folder
from pellucid.errors import InputError, OutputError, PellucidError, PellucidWarning, PlanError
from pellucid.stages.work.engine import Facts, Task, timed

LANES = 2
"""Pieces that a worker holds at once: while one is computed, the other is read or written."""

PATIENCE_S = 10.0
"""Network file systems may show a new file this late."""

_pieces = threading.BoundedSemaphore(LANES)
_computing = threading.Lock()


@dataclass(frozen=True)
class TaskFile:
    """A task on the storage that all share.

    Parameters
    ----------
    path : of the file, absolute
    checksum : of its bytes, so that nothing else is ever opened in its place
    """

    path: str
    checksum: str


@dataclass(frozen=True)
class Failed:
    """Why a piece could not be done, and by whom."""

    error: PellucidError
    worker: str


def put_task(task: Task[Any], manifest: Path, threads: int | None) -> TaskFile:
    """Write a task beside its manifest.

    Parameters
    ----------
    threads : of a worker's arithmetic; None: as many as it has
    """
    said = {"pellucid": __version__, "threads": threads, "manifest": manifest.name}
    content = json.dumps(said).encode() + b"\n" + pickle.dumps(task)
    checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
    path = manifest.absolute().with_name(f"{manifest.name}.{checksum[:12]}{TASK_SUFFIX}")
    path.write_bytes(content)
    synchronise(path)
    synchronise_folder(path.parent)
    return TaskFile(str(path), checksum)


def do(file: str, checksum: str, key: Any) -> tuple[Facts, dict[str, float]] | Failed:
    """Do one piece; what is listed of it, and seconds."""
    try:
        return _do(TaskFile(file, checksum), key)
    except PellucidError as error:
        return Failed(error, _address())
    except (MemoryError, torch.OutOfMemoryError) as error:
        error.__traceback__ = None  # what it holds would keep the memory from the next piece
        why = f"out of memory on {socket.gethostname()}. Take smaller tiles (--memory, --tile)."
        return Failed(PlanError(why), _address())
    except Exception as error:
        logging.getLogger(__name__).exception("a task failed")
        why = f"{type(error).__name__} on {socket.gethostname()}: {error}"
        return Failed(PellucidError(why), _address())


def _do(file: TaskFile, key: Any) -> tuple[Facts, dict[str, float]]:
    task, manifest = _task(file)
    timings_s: dict[str, float] = {}
    with _pieces:
        with timed(timings_s, "read"):
            read = task.read(key)
        with _computing, timed(timings_s, "compute"):
            _choose_gpu()
            made = task.compute(key, read)
        del read
        with timed(timings_s, "write"):
            _check_goes_on(file)
            facts = task.write(key, made)
            record_beside(manifest, process_name(), task.part(key), facts)
    return facts, timings_s


@lru_cache(maxsize=2)
def _task(file: TaskFile) -> tuple[Task[Any], Path]:
    content = _read_patiently(Path(file.path))
    if hashlib.blake2b(content, digest_size=16).hexdigest() != file.checksum:
        raise InputError(f"{file.path}: not the task that was meant. Begin the run again.")
    head, _, pickled = content.partition(b"\n")
    said = json.loads(head)
    if said["pellucid"] != __version__:
        raise InputError(
            f"Pellucid {__version__} on the worker {socket.gethostname()}, and {said['pellucid']} where "
            "the run was begun. Install the same everywhere."
        )
    if said["threads"]:
        torch.set_num_threads(said["threads"])
    warnings.simplefilter("ignore", PellucidWarning)  # what they say is among the facts
    return pickle.loads(pickled), Path(file.path).with_name(said["manifest"])


def _read_patiently(path: Path) -> bytes:
    begin = time.monotonic()
    while True:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            if time.monotonic() - begin > PATIENCE_S:
                raise InputError(
                    f"{path}: not seen by the worker on {socket.gethostname()}. Inputs and outputs of a "
                    "cluster must lie on storage that all its machines share, under the same path."
                ) from None
            time.sleep(0.25)


def _check_goes_on(file: TaskFile) -> None:
    """Refuse to write for a run that has ended, or was begun anew with other parameters."""
    try:
        with open(file.path, "rb"):
            pass
    except FileNotFoundError:
        raise OutputError(f"{Path(file.path).name}: the run of this task is over.") from None


@cache
def process_name() -> str:
    """Return a name that no other process has, on any machine."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def _address() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return ""


def _choose_gpu() -> None:
    """Take the GPU that has this worker's number, where workers of one machine are numbered."""
    if torch.cuda.is_available():
        from distributed import get_worker

        name = get_worker().name
        torch.cuda.set_device(name % torch.cuda.device_count() if isinstance(name, int) else 0)
