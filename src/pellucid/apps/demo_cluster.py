"""The demonstration of tiles on a cluster: two local workers, one of them killed, and the same bytes."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.apps.demo_deconvolution import CAMERA, OPTICS, PEAK_PHOTONS, SEED, VOXEL_UM, cell
from pellucid.apps.demo_part import Part
from pellucid.apps.report import Section
from pellucid.apps.terminal import say
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.simulation import record
from pellucid.data.manifest import LIST_SUFFIX, files_beside, process_of
from pellucid.data.record import RunRecord, read_record
from pellucid.data.resumable_zarr import manifest_path
from pellucid.errors import ParameterError
from pellucid.stages.deconvolution.arrays import write
from pellucid.stages.deconvolution.deconvolve import run
from pellucid.stages.deconvolution.planning import plan_deconvolution
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.psf.files import write_psf
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import Event, TileDone
from pellucid.stages.work.workplace import opened_engine

SHAPE = (24, 256, 384)
TILE = (24, 128, 128)
ITERATIONS = 10
UNDISTURBED, DISTURBED = "undisturbed.ome.zarr", "worker_killed.ome.zarr"


@dataclass
class Killer:
    """Listens to a run, and kills the worker that has made the first tile."""

    output: Path
    victim: int | None = None
    tiles: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if not isinstance(event, TileDone):
            return
        self.tiles.append(event.what)
        lists = files_beside(manifest_path(self.output), LIST_SUFFIX)
        if self.victim is None and lists:
            self.victim = process_of(lists[0])
            os.kill(self.victim, signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
            say(f"killed the worker with process id {self.victim} after {event.what}")


def worker_killed(output: Path) -> Part:
    """Deconvolve a recording by tiles, by one process and by two workers of which one is killed."""
    psf = theoretical_psf(spacing_um=VOXEL_UM, **OPTICS)
    seen = record(cell, psf.values, SHAPE, peak_photons=PEAK_PHOTONS, camera=CAMERA, seed=SEED)
    write(output / "large.ome.zarr", seen.counts, voxel_um=VOXEL_UM, overwrite=True)
    write_psf(psf, output / "psf_large.tif", RunRecord("psf make", OPTICS), overwrite=True)
    alone_s = _restored(output, UNDISTURBED, InProcess(), Killer(output / "nobody"))
    say(
        f"pellucid deconvolve {output / 'large.ome.zarr'} --psf {output / 'psf_large.tif'} --tile "
        f"{','.join(map(str, TILE))} --iterations {ITERATIONS} --method matched --cluster local:2 "
        f"-o {output / DISTURBED}"
    )
    try:
        with opened_engine("local:2") as engine:
            killer = Killer(output / DISTURBED)
            cluster_s = _restored(output, DISTURBED, engine, killer)
    except ParameterError as error:  # Dask is an extra
        return Part("cluster", "one process", ["", f"two workers: not shown. {error}"], {}, (), [])
    same = chunks(output / UNDISTURBED) == chunks(output / DISTURBED)
    lines = [
        "",
        f"{len(killer.tiles)} tiles by two local workers, one of which was killed (-9, process id "
        f"{killer.victim}) after the first",
        f"the result is {'equal to' if same else 'UNLIKE'} that of one undisturbed process"
        f"{', byte for byte' if same else ''}",
        f"seconds: {alone_s:.1f} by one process, {cluster_s:.1f} by the workers, the kill included",
    ]
    return Part(
        "cluster", "the same light sheet, by tiles", lines, {}, (DISTURBED,),
        [Section("Tiles, with a worker killed on the way", sentences=lines[1:])],
        read_record(output / DISTURBED),
    )  # fmt: skip


def _restored(output: Path, name: str, engine: Engine, listener: Killer) -> float:
    asked: dict[str, Any] = {
        "inputs": (str(output / "large.ome.zarr"),), "psf": (output / "psf_large.tif",),
        "output": output / name, "tile": TILE, "iterations": ITERATIONS, "overwrite": True,
        "method": "matched",
    }  # fmt: skip
    plan = plan_deconvolution(DeconvolveParameters.checked(asked))
    begin = time.perf_counter()
    run(plan, listener, engine)
    return time.perf_counter() - begin


def chunks(image: Path) -> dict[str, bytes]:
    """The bytes of every file of an image but its metadata, which hold times and its name."""
    files = (f for f in image.rglob("*") if f.is_file() and f.name != "zarr.json")
    return {str(f.relative_to(image)): f.read_bytes() for f in files}
