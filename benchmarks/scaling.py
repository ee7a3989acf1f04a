"""What a cluster costs: two local workers against one, and bytes and seconds of the scheduler for a task.

    python benchmarks/scaling.py workers --repeats 3
    python benchmarks/scaling.py scheduler --tasks 10000
    python benchmarks/scaling.py serial
    python benchmarks/scaling.py measuring

Workers have one thread each. The scheduler runs in a process of its own, whose processor seconds and
the bytes of whose connections (`ss`, Linux) are counted between the first task and the last. `serial`
times what lies around the tiles in one process, and is tasks on a cluster: measuring, of samples and of all
voxels, and the coarser levels. `measuring` compares one worker with two, and what they measure.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import faults
import pellucid
from pellucid.core.tiling import Tiling
from pellucid.data.manifest import Manifest
from pellucid.data.ome_zarr_writer import OmeZarrWriter
from pellucid.data.recording import open_recording
from pellucid.data.writer import ImageDescription
from pellucid.stages.deconvolution.deconvolve import run
from pellucid.stages.deconvolution.planning import plan_deconvolution
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.pieces.volume_statistics import (
    LazyVolume,
    SampledVolumes,
    VolumeStatistics,
    combined,
    core_statistics,
    measured,
    sampled,
)
from pellucid.stages.work.cluster import opened
from pellucid.stages.work.cluster_choice import Local, Scheduler
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import TileDone
from trivial_tiles import TrivialTiles

VOXEL_UM = (0.3, 0.1, 0.1)
SHAPE = (64, 384, 512)
TICKS = os.sysconf("SC_CLK_TCK")


def make(folder: Path) -> DeconvolveParameters:
    """Write a recording and its PSF; returns what is asked."""
    faults.make(folder, SHAPE)
    return DeconvolveParameters.checked(
        {"inputs": (str(folder / "raw.ome.zarr"),), "psf": (folder / "psf.tif",), "iterations": 10,
         "output": folder / "sharp.ome.zarr", "tile": (64, 128, 128), "overwrite": True}
    )  # fmt: skip


def workers(repeats: int) -> None:
    """Print the seconds of tiles with one and with two workers, alternately."""
    with tempfile.TemporaryDirectory() as place:
        plan = plan_deconvolution(make(Path(place)))
        seconds: dict[int, list[float]] = {1: [], 2: []}
        tiles: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(repeats):
            for count in (1, 2):
                ends: list[float] = []
                computed: list[float] = []

                def note(event: Any, ends: list[float] = ends, own: list[float] = computed) -> None:
                    if isinstance(event, TileDone):
                        ends.append(time.perf_counter())
                        own.append(event.seconds)

                with opened(Local(count)) as engine:
                    run(plan, note, replace(engine, threads=1))
                # The first pieces warm the workers up (imports, FFT plans), so they do not count.
                warm = 2 * count
                rate = (len(ends) - warm) / (ends[-1] - ends[warm - 1])
                seconds[count].append(1 / rate)
                tiles[count].append(float(np.median(computed)))
            ratio = np.median(seconds[1]) / np.median(seconds[2])
            print(
                f"{len(ends)} tiles of 64 x 128 x 128: a tile every {np.median(seconds[1]):.2f} s by one "
                f"worker, every {np.median(seconds[2]):.2f} s by two: {ratio:.2f} times as fast; its "
                f"arithmetic takes {np.median(tiles[1]):.2f} s and {np.median(tiles[2]):.2f} s",
                flush=True,
            )


def serial() -> None:
    """Print the processor seconds of measuring a volume, and of making the pyramid of an output."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = plan_deconvolution(make(folder)).files[0]
        assert file.tiles is not None
        million = np.prod(SHAPE) / 1e6
        volume, tiling = LazyVolume(file.recording, 0, 0), file.tiles.tiling
        begin = time.process_time()
        levels = sampled(volume, None)
        sampling = time.process_time() - begin
        begin = time.process_time()
        cores = [core_statistics(volume[tile.core], levels) for tile in tiling]
        combined(levels, cores, int(np.prod(SHAPE)))
        measuring = time.process_time() - begin
        image = ImageDescription((1, 1, *SHAPE), voxel_um=VOXEL_UM)
        restored = np.random.default_rng(0).gamma(2.0, 10.0, SHAPE).astype(np.float32)
        with OmeZarrWriter(folder / "pyramid.ome.zarr", image) as writer:
            writer.write(0, 0, restored)
            begin = time.process_time()
        pyramid = time.process_time() - begin
        print(
            f"{million:.1f} million voxels, s of a processor: samples {sampling:.2f}; for a million: "
            f"measuring cores {measuring / million:.4f}, pyramid {pyramid / million:.4f}"
        )


def measuring(repeats: int) -> None:
    """Print the seconds of measuring cores by one worker and two, and whether all engines say the same."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        counts = open_recording(folder / "raw.ome.zarr").read()
        pellucid.write(folder / "wide.ome.zarr", np.tile(counts, (1, 2, 4)), voxel_um=VOXEL_UM)
        volume = LazyVolume(open_recording(folder / "wide.ome.zarr"), 0, 0)
        tiling = Tiling(volume.shape, (64, 128, 512), (0, 0, 0), (1, 1, 1), 0)
        said: list[dict[Any, VolumeStatistics]] = []
        clock: dict[int, list[float]] = {1: [], 2: []}
        used: dict[int, list[float]] = {1: [], 2: []}

        def by(engine: Engine, listed: Manifest) -> None:
            said.append(measured({(0, 0): volume}, tiling, None, "auto", engine, listed))

        by(InProcess(), Manifest(folder / "here.jsonl", {}))
        for number in range(repeats):
            for count in (1, 2):
                with opened(Local(count)) as engine:
                    engine = replace(engine, threads=1)
                    by(engine, Manifest(folder / f"warm{number}{count}.jsonl", {}))
                    listed = Manifest(folder / f"run{number}{count}.jsonl", {})
                    samples = SampledVolumes({(0, 0): volume}, None, "auto")
                    engine.run([(0, 0)], samples, listed, lambda _: None)  # one task: not what is timed
                    begin, before = time.perf_counter(), engine.client.run(time.process_time)
                    by(engine, listed)
                    clock[count].append(time.perf_counter() - begin)
                    after = engine.client.run(time.process_time)
                    used[count].append(sum(after.values()) - sum(before.values()))
        one, two = (float(np.median(clock[count])) for count in (1, 2))
        print(
            f"{np.prod(volume.shape) / 1e6:.0f} million voxels, {len(tiling)} cores: {one:.2f} s by one, "
            f"{two:.2f} s by two, {one / two:.2f} times as fast; {np.median(used[1]):.2f} and "
            f"{np.median(used[2]):.2f} s of processors; all say the same: {all(s == said[0] for s in said)}"
        )


def processor_s(process: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def connection_bytes(port: int) -> int:
    """Bytes that went through a port, both ways."""
    said = subprocess.run(
        ["ss", "-tinH", f"sport = :{port}"], capture_output=True, text=True, check=True
    ).stdout
    return sum(int(n) for n in re.findall(r"bytes_(?:sent|received):(\d+)", said))


@contextmanager
def scheduler_of(folder: Path, count: int) -> Iterator[tuple[str, int]]:
    """Give the address and the process id of a scheduler with `count` workers."""
    where = folder / "where.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m"]
    processes = [
        subprocess.Popen(
            [*command, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
             "--no-dashboard", "--scheduler-file", str(where)], **options,
        )
    ]  # fmt: skip
    while not (where.is_file() and where.read_text()):
        time.sleep(0.1)
    address = json.loads(where.read_text())["address"]
    for _ in range(count):
        processes.append(
            subprocess.Popen(
                [*command, "distributed.cli.dask_worker", address, "--nthreads", "2", "--no-nanny",
                 "--no-dashboard", "--death-timeout", "10"], env=environment, **options,
            )
        )  # fmt: skip
    try:
        yield address, processes[0].pid
    finally:
        for process in processes:
            process.kill()
            process.wait()


def scheduler(tasks: int) -> None:
    """Print bytes and seconds of the scheduler, and of the client, for a task that does nothing."""
    with (
        tempfile.TemporaryDirectory() as place,
        scheduler_of(Path(place), 2) as (address, process),
        opened(Scheduler(address)) as engine,
    ):
        engine.client.wait_for_workers(2)
        done: list[float] = []

        def trivial(name: str, count: int) -> None:
            keys = [(0, 0, index) for index in range(count)]
            engine.run(
                keys, TrivialTiles(), Manifest(Path(place) / name, {}),
                lambda _: done.append(time.perf_counter()),
            )  # fmt: skip

        trivial("warm.jsonl", 100)
        port = int(address.rpartition(":")[2])
        begin, used = time.perf_counter(), processor_s(process)
        own, through = time.process_time(), connection_bytes(port)
        trivial("run.jsonl", tasks)
        wall, used = time.perf_counter() - begin, processor_s(process) - used
        own, through = time.process_time() - own, connection_bytes(port) - through
        print(
            f"{tasks} tasks that do nothing, two workers: {1e3 * used / tasks:.2f} ms of the scheduler's "
            f"processor, {1e3 * own / tasks:.2f} ms of the client's, {through / tasks:.0f} bytes through "
            f"the scheduler (both ways) for each; {tasks / wall:.0f} tasks a second"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("workers", "scheduler", "serial", "measuring"))
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    if asked.what == "scheduler":
        scheduler(asked.tasks)
    elif asked.what == "workers":
        workers(asked.repeats)
    elif asked.what == "measuring":
        measuring(asked.repeats)
    else:
        serial()


if __name__ == "__main__":
    main()
