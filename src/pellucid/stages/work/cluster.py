"""The engine of many processes and machines: Dask distributed, on one machine, a cluster, or SLURM.

The scheduler sees keys, a path and a checksum, and what is listed of each piece; arrays go from storage to
worker to storage. A piece whose worker dies is done by another; one that fails is tried elsewhere.
"""

import importlib
import itertools
import logging
import signal
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.data.manifest import Manifest
from pellucid.errors import ParameterError, PellucidError, PlanError
from pellucid.stages.work.cluster_choice import (
    Cluster,
    Local,
    Slurm,
    SlurmParameters,
    Workplace,
    processors,
)
from pellucid.stages.work.cluster_worker import LANES, Failed, TaskFile, do, put_task
from pellucid.stages.work.engine import Done, Key, OnDone, Task
from pellucid.stages.work.resources import available_bytes, resident_bytes, resolve_device

TRIES = 3
"""Times that a piece is done until its error ends the run."""

WINDOW = 5000
"""Pieces that the scheduler knows of at once."""

CONNECT_S = 10

GONE = "the scheduler is gone, or has dropped its tasks."

SETTINGS = {
    # Workers keep no results, so nothing can be spilled; what arithmetic holds is planned.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
    "distributed.admin.log-format": "%(name)s: %(message)s",
}


@dataclass(frozen=True)
class DaskEngine:
    """Workers of a Dask scheduler.

    Parameters
    ----------
    client : a `distributed.Client`
    threads : of a worker's arithmetic; None: as many as it has
    """

    client: Any
    threads: int | None = None

    @property
    def described(self) -> str:
        """Where the work is done, in words, with the address of the dashboard."""
        said = self.client.scheduler_info(n_workers=-1)
        count = len(said["workers"])
        workers = "1 worker" if count == 1 else f"{count} workers"
        return f"{workers} of {said['address']}, dashboard {self.client.dashboard_link}"

    def run(
        self, keys: Sequence[Key], task: Task[Key], listed: Manifest, on_done: OnDone[Key]
    ) -> None:
        """See `Engine.run`."""
        missing = [key for key in keys if task.part(key) not in listed]
        if not missing:
            return
        file = put_task(task, listed.path, self.threads)
        try:
            _Run(self.client, file).do(missing, task, listed, on_done)
        finally:
            # Workers that are late find the task gone, and write nothing more.
            Path(file.path).unlink(missing_ok=True)
        listed.take_in()


@dataclass
class _Run:
    client: Any
    file: TaskFile
    keys: dict[str, Any] = field(default_factory=dict)
    failures: dict[Any, list[Failed]] = field(default_factory=dict)

    def do(
        self, missing: Sequence[Key], task: Task[Key], listed: Manifest, on_done: OnDone[Key]
    ) -> None:
        waiting = iter(missing)
        first = [self._submitted(key) for key in itertools.islice(waiting, WINDOW)]
        under_way = imported("distributed").as_completed(first, loop=self.client.loop)
        try:
            for future in under_way:
                key = self.keys.pop(future.key)
                made = self._made(future, task.part(key))
                if isinstance(made, Failed):
                    under_way.add(self._again(key, made))
                    continue
                facts, timings_s = made
                listed.note(task.part(key), facts)
                on_done(Done(key, facts, timings_s))
                for following in itertools.islice(waiting, 1):
                    under_way.add(self._submitted(following))
        except imported("distributed.comm").CommClosedError as error:
            raise PellucidError(GONE) from error
        except BaseException:
            self._cancel(under_way)
            raise

    def _submitted(self, key: Any, **where: Any) -> Any:
        name = f"piece-{uuid.uuid4().hex}"
        self.keys[name] = key
        return self.client.submit(
            do, self.file.path, self.file.checksum, key, key=name, pure=False, **where
        )

    def _again(self, key: Any, failed: Failed) -> Any:
        """Submit a piece once more, elsewhere if there is an elsewhere."""
        failures = self.failures.setdefault(key, [])
        failures.append(failed)
        if len(failures) == TRIES:
            raise failed.error
        been = {failure.worker for failure in failures}
        others = [w for w in self.client.scheduler_info(n_workers=-1)["workers"] if w not in been]
        return self._submitted(key, **({"workers": others, "allow_other_workers": True} if others else {}))

    def _made(self, future: Any, part: str) -> Any:
        if future.status == "finished":
            return future.result()
        if future.status == "error":
            error = future.exception()
            if isinstance(error, imported("distributed").KilledWorker):
                raise PellucidError(
                    f"{part}: every worker that tried it ended, perhaps for want of memory. "
                    "Take smaller tiles (--memory, --tile)."
                ) from error
            if isinstance(error, imported("distributed.comm").CommClosedError):
                raise PellucidError(f"{part}: {GONE}") from error
            raise PellucidError(f"{part}: {type(error).__name__}: {error}") from error
        raise PellucidError(f"{part}: {GONE}")

    def _cancel(self, under_way: Any) -> None:
        futures = list(under_way.futures)
        if futures and self.client.status == "running":
            self.client.cancel(futures, force=True)


@contextmanager
def opened(cluster: Cluster) -> Iterator[DaskEngine]:
    """Start or reach a cluster, and give its engine; what was started is ended after.

    Raises
    ------
    ParameterError : Dask is not installed
    PlanError : the scheduler does not answer
    """
    dask = imported("dask")
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        _quiet()
        if isinstance(cluster, Local):
            threads = max(1, processors() // cluster.workers)
            client = _client(stack, stack.enter_context(_local(cluster.workers)))
            client.wait_for_workers(cluster.workers)
            client.run(_leave_interrupts)
            yield DaskEngine(client, threads)
        elif isinstance(cluster, Slurm):
            started = stack.enter_context(slurm_cluster(cluster.asked))
            started.adapt(minimum=cluster.asked.workers, maximum=cluster.asked.workers)
            yield DaskEngine(_client(stack, started), cluster.asked.cores)
        else:
            yield DaskEngine(_client(stack, cluster.address))


def _leave_interrupts() -> None:
    """Let a worker of this terminal go on at Ctrl-C, which is this process's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _client(stack: ExitStack, where: Any) -> Any:
    try:
        client = imported("distributed").Client
        return stack.enter_context(client(where, timeout=CONNECT_S, set_as_default=False))
    except (OSError, TimeoutError, ValueError) as error:
        raise PlanError(
            f"cluster: no scheduler answers at {where}. Start `dask scheduler`, or check the address."
        ) from error


def _local(workers: int) -> Any:
    return imported("distributed").LocalCluster(
        n_workers=workers, threads_per_worker=LANES, processes=True, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
    )  # fmt: skip


def slurm_cluster(asked: SlurmParameters) -> Any:
    """Return the jobs that a SLURM file describes, none submitted yet."""
    return imported("dask_jobqueue").SLURMCluster(**slurm_options(asked))


def slurm_options(asked: SlurmParameters) -> dict[str, Any]:
    """Return what a SLURM file says in the words of dask-jobqueue: one worker in each job."""
    chosen = {
        "account": asked.account, "interface": asked.interface, "python": asked.python,
        "log_directory": None if asked.logs is None else str(asked.logs),
    }  # fmt: skip
    gpu = ["--gres=gpu:1"] if asked.gpus else []
    return {
        "queue": asked.queue, "walltime": asked.walltime, "cores": LANES, "processes": 1,
        "job_cpu": asked.cores, "memory": f"{asked.memory}B", "job_name": "pellucid",
        "job_extra_directives": [*gpu, *asked.directives],
        "job_script_prologue": list(asked.prologue),
        **{name: value for name, value in chosen.items() if value is not None},
    }  # fmt: skip


def seen_at(address: str, device: str) -> Workplace:
    """Return what the workers of a scheduler have: the device, their number, and the least room.

    Raises
    ------
    PlanError : nobody answers, or there are no workers
    """
    dask = imported("dask")
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        _quiet()
        client = _client(stack, address)
        said = client.scheduler_info(n_workers=-1)["workers"]
        if not said:
            raise PlanError(f"cluster: {address} has no workers. Start some with `dask worker`.")
        rooms = client.run(_room_of_worker, device)
    devices = {name for name, _ in rooms.values()}
    if len(devices) > 1:
        raise PlanError(
            f"cluster: some workers of {address} have a GPU and some have none. Say --device cpu, or "
            "start workers of one kind."
        )
    known = [room for _, room in rooms.values() if room is not None]
    return Workplace(devices.pop(), len(said), min(known, default=None))


def _room_of_worker(asked: str, dask_worker: Any = None) -> tuple[str, int | None]:
    device = resolve_device(asked)
    free = available_bytes(device)
    limit = dask_worker.memory_manager.memory_limit
    if device == "cpu" and limit:
        free = min(free or limit, limit - resident_bytes())
    return device.partition(":")[0], free


def imported(name: str) -> Any:
    """Return dask, distributed or dask_jobqueue; ParameterError, with what to do, without them."""
    try:
        importlib.import_module("distributed")
        return importlib.import_module(name)
    except ImportError:
        raise ParameterError(
            "cluster: needs dask, distributed and dask-jobqueue (for SLURM). Install them: "
            "pip install 'pellucid[cluster]'."
        ) from None


def _quiet() -> None:
    """Let the library of the cluster keep to itself what the run says in its own words."""
    imported("distributed")  # sets levels of its own
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
