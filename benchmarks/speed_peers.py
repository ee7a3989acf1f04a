"""What the speed benchmark times: the volume, the reference, ours, the FFTs alone, and the peers.

Run as a script, in any environment that has the contender, by `speed.py`:

    python speed_peers.py --prepare FOLDER SHAPE PSF_SHAPE SETTINGS    writes the job and references
    python speed_peers.py --work INDEX FOLDER SETTINGS                 one contender, asked by stdin

so that it imports nothing but NumPy and the standard library until a contender is chosen.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]
Timed = tuple[Array | None, float, float]
"""A result, and the wall and CPU seconds it took."""


@dataclass(frozen=True)
class Job:
    """What every contender gets: the volume, the PSF, how often, with how many threads."""

    image: Array
    psf: Array
    iterations: int
    threads: int
    deconwolf: str = ""
    folder: Path = Path()


@dataclass(frozen=True)
class Handling:
    """What happens at the border, and where the iteration starts: one float64 reference for each.

    Parameters
    ----------
    border : "periodic" (wraps around), "reflected" or "reflected smooth" (padded with its mirror
        image, see `mirrored`), "dark" (nothing outside the image) or "extended" (an object larger
        than the image)
    weighted : divides by the sensitivity A* 1 (Bertero & Boccacci 2005)
    start : "flat", "seen" (flat, dark where not seen) or "raw" (the image itself)
    unseen : sensitivity below which the object stays dark
    """

    border: str
    weighted: bool = False
    start: str = "flat"
    unseen: float = 0.0

    @property
    def group(self) -> str:
        """Contenders of one group are compared: they do the same work on grids of one size."""
        return self.border if self.border in ("periodic", "dark") else "padded"

    def __str__(self) -> str:
        return self.border + (", weighted" if self.weighted else "")


def grid_of(image: Shape, psf: Shape, border: str) -> Shape:
    """Return the smallest FFT-friendly grid on which nothing wraps around, or the image's own."""
    from scipy.fft import next_fast_len

    if border == "periodic":
        return image
    reach = [n // 2 if border == "dark" else n - 1 for n in psf]
    return tuple(next_fast_len(n + r, real=True) for n, r in zip(image, reach, strict=True))


def mirrored(image: Array, psf: Shape, *, smooth: bool) -> tuple[Array, Shape]:
    """Return the image padded with its mirror by the PSF's reach, and the voxels put before it.

    `smooth`: up to the next product of 2, 3, 5 and 7, as flowdec; else by exactly the reach.
    """
    grid = [n + k - 1 for n, k in zip(image.shape, psf, strict=True)]
    if smooth:
        # a 7-smooth number divides a high power of 210
        grid = [next(g for g in range(n, 2 * n) if 210**12 % g == 0) for n in grid]
    low = tuple((g - n + 1) // 2 for g, n in zip(grid, image.shape, strict=True))
    high = [g - n - b for g, n, b in zip(grid, image.shape, low, strict=True)]
    return np.pad(image, list(zip(low, high, strict=True)), mode="reflect"), low


def plain_loop(job: Job, handling: Handling, dtype: type) -> Array:
    """Return Richardson-Lucy as a page of SciPy: the float64 reference, and a float32 contender."""
    if handling.border.startswith("reflected"):
        smooth = handling.border.endswith("smooth")
        wide, low = mirrored(job.image, job.psf.shape, smooth=smooth)
        inside = tuple(slice(b, b + n) for b, n in zip(low, job.image.shape, strict=True))
        whole = Job(wide, job.psf, job.iterations, job.threads)
        return plain_loop(whole, Handling("periodic", start=handling.start), dtype)[inside]

    from scipy import fft

    image, psf = job.image.astype(dtype), job.psf.astype(dtype)
    extended = handling.border == "extended"
    grid = grid_of(image.shape, psf.shape, handling.border)
    # an extended object starts before the image, by the reach of the PSF
    margin = [n - 1 - n // 2 if extended else 0 for n in psf.shape]
    field = tuple(slice(m, m + n) for m, n in zip(margin, image.shape, strict=True))
    domain = tuple(slice(n) for n in (grid if extended else image.shape))

    def embedded(values: Array, place: tuple[slice, ...]) -> Array:
        whole = np.zeros(grid, dtype)
        whole[place] = values
        return whole

    kernel = embedded(psf, tuple(slice(n) for n in psf.shape))
    otf = fft.rfftn(np.roll(kernel, [-(n // 2) for n in psf.shape], axis=(0, 1, 2)))
    del kernel

    def blurred(x: Array) -> Array:
        return fft.irfftn(fft.rfftn(x, s=grid) * otf, s=grid, overwrite_x=True)[field]

    def back(y: Array) -> Array:
        y = y if y.shape == grid else embedded(y, field)
        return fft.irfftn(fft.rfftn(y) * otf.conj(), s=grid, overwrite_x=True)[domain]

    x = image.copy() if handling.start == "raw" else np.full(grid, image.mean(), dtype)[domain]
    weight: Array | float = 1.0
    if handling.weighted:
        seen = back(np.ones_like(image))
        weight = np.where(seen > handling.unseen, 1 / np.maximum(seen, 1e-6), 0).astype(dtype)
        if handling.start == "seen":
            x = x * (weight > 0)
    for _ in range(job.iterations):
        x = x * weight * back(image / blurred(x))
    return x[field]


def ours(job: Job, border: str) -> Callable[[], Array]:
    import torch

    from pellucid.core.operators import Blur
    from pellucid.core.problem import Observation, Problem
    from pellucid.core.richardson_lucy import RichardsonLucy

    class Periodic(Blur):
        """A blur that wraps around, which the package does not offer: to meet the peers that do."""

        def __init__(self, psf: torch.Tensor, image_shape: tuple[int, int, int]) -> None:
            from pellucid.core.fourier import transfer_function

            self.psf, self.range_shape, self.domain_shape = psf, image_shape, image_shape
            self.grid, self.margin = image_shape, (0, 0, 0)
            z, y, x = (n // 2 for n in psf.shape)
            self.transfer = transfer_function(psf, image_shape, (z, y, x))

    torch.set_num_threads(job.threads)
    image, psf = torch.from_numpy(job.image), torch.from_numpy(job.psf)
    z, y, x = job.image.shape

    def run() -> Array:
        if border == "periodic":
            blur: Blur = Periodic(psf, (z, y, x))
        else:
            blur = Blur(psf, (z, y, x), extended=border == "extended")
        problem = Problem((Observation(image, blur),))
        result: Array = RichardsonLucy(iterations=job.iterations)(problem).image.numpy()
        return result

    return run


def floor(job: Job, border: str) -> Callable[[], Array]:
    """The transforms alone, on the grid that we use: two pairs an iteration."""
    from scipy import fft

    grid = grid_of(job.image.shape, job.psf.shape, border)
    volume = np.random.default_rng(0).random(grid, dtype=np.float32)

    def run() -> Array:
        for _ in range(2 * job.iterations):
            fft.irfftn(fft.rfftn(volume), s=grid, overwrite_x=True)
        return job.image

    return run


def scipy_loop(job: Job, handling: Handling) -> Callable[[], Array]:
    return lambda: plain_loop(job, handling, np.float32)


def scikit_image(job: Job) -> Callable[[], Array]:
    from skimage.restoration import richardson_lucy

    return lambda: richardson_lucy(job.image, job.psf, num_iter=job.iterations, clip=False)


def red_lionfish(job: Job) -> Callable[[], Array]:
    from RedLionfishDeconv import doRLDeconvolutionFromNpArrays as deconvolve

    return lambda: deconvolve(job.image, job.psf, niter=job.iterations, method="cpu")


def flowdec(job: Job, border: str) -> Callable[[], Array]:
    import tensorflow as tf
    from flowdec import data, restoration

    acquisition = data.Acquisition(data=job.image, kernel=job.psf)
    padding = {
        "periodic": {"pad_mode": "none"},
        "reflected": {
            "pad_mode": "2357", "pad_fill": "reflect", "pad_min": [n - 1 for n in job.psf.shape]
        },
    }[border]  # fmt: skip
    # its real-domain form is faster and 3 to 8 % wrong (the kernel is flipped by one voxel)
    solver = restoration.RichardsonLucyDeconvolver(3, real_domain_fft=False, **padding).initialize()
    session = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=job.threads, inter_op_parallelism_threads=1
    )
    return lambda: solver.run(acquisition, job.iterations, session_config=session).data


def sdeconv(job: Job, border: str) -> Callable[[], Array]:
    import torch
    from sdeconv.deconv.richardson_lucy import SRichardsonLucy

    torch.set_num_threads(job.threads)
    # it takes a PSF of the image's shape
    embedded = np.zeros(job.image.shape, np.float32)
    low = [n // 2 - k // 2 for n, k in zip(job.image.shape, job.psf.shape, strict=True)]
    cut = [max(0, -b) for b in low]
    kept = job.psf[tuple(slice(c, k - c) for c, k in zip(cut, job.psf.shape, strict=True))]
    low = [max(0, b) for b in low]
    embedded[tuple(slice(b, b + k) for b, k in zip(low, kept.shape, strict=True))] = kept
    pad = tuple(n // 2 for n in job.psf.shape) if border == "reflected" else 0
    solver = SRichardsonLucy(torch.from_numpy(embedded), job.iterations, pad)
    image = torch.from_numpy(job.image)
    return lambda: np.asarray(solver(image))


def deconwolf(job: Job, border: str) -> Callable[[], Timed]:
    """Its program on TIFF files: n + 1 iterations less 1, so that only iterations count."""
    import tifffile

    if shutil.which(job.deconwolf) is None:
        raise ImportError(f"no program {job.deconwolf!r}")
    folder = job.folder / f"deconwolf-{border}"
    folder.mkdir()
    tifffile.imwrite(folder / "image.tif", job.image)
    tifffile.imwrite(folder / "psf.tif", job.psf)
    # no offset, no lower bound, no cropping of the PSF, float output: the arithmetic of the others
    options = (
        f"--method rl --offset 0 --bg 1e-9 --xyfactor 0 --float --overwrite "
        f"--threads {job.threads} --bq {0 if border == 'periodic' else 2} --out out.tif"
    ).split()
    home = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}

    def program(iterations: int) -> tuple[float, float]:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [job.deconwolf, *options, "--iter", str(iterations), "image.tif", "psf.tif"],
            cwd=folder, env=home, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    program(job.iterations)
    result = tifffile.imread(folder / "out.tif")

    def run() -> Timed:
        long, short = program(job.iterations + 1), program(1)
        return result, long[0] - short[0], long[1] - short[1]

    return run


@dataclass(frozen=True)
class Contender:
    """A way to run the job: what it needs to be imported, and the reference it is compared with."""

    name: str
    module: str
    handling: Handling
    make: Callable[[Job], Callable[[], Any]]

    @property
    def key(self) -> str:
        return f"{self.name}, {self.handling.border}"


PERIODIC, PERIODIC_RAW = Handling("periodic"), Handling("periodic", start="raw")
DARK, DARK_WEIGHTED = Handling("dark"), Handling("dark", True, "seen", 0.02)
EXTENDED = Handling("extended", True, "seen", 0.02)
EXTENDED_DECONWOLF = Handling("extended", True, "flat", 0.01)
REFLECTED_RAW, REFLECTED_SMOOTH = Handling("reflected", start="raw"), Handling("reflected smooth")
OURS, FLOOR = "pellucid", "FFTs alone"
_OURS, _SDECONV = "pellucid.core.richardson_lucy", "sdeconv.deconv.richardson_lucy"
_FLOWDEC = "flowdec.restoration"
CONTENDERS = [
    Contender(FLOOR, "scipy.fft", PERIODIC, lambda j: floor(j, "periodic")),
    Contender(OURS, _OURS, PERIODIC, lambda j: ours(j, "periodic")),
    Contender("SciPy loop", "scipy.fft", PERIODIC, lambda j: scipy_loop(j, PERIODIC)),
    Contender("flowdec", _FLOWDEC, PERIODIC, lambda j: flowdec(j, "periodic")),
    Contender("RedLionfish", "RedLionfishDeconv", PERIODIC_RAW, red_lionfish),
    Contender("sdeconv", _SDECONV, PERIODIC_RAW, lambda j: sdeconv(j, "periodic")),
    Contender("deconwolf", "tifffile", PERIODIC, lambda j: deconwolf(j, "periodic")),
    Contender(FLOOR, "scipy.fft", DARK_WEIGHTED, lambda j: floor(j, "dark")),
    Contender(OURS, _OURS, DARK_WEIGHTED, lambda j: ours(j, "dark")),
    Contender("scikit-image", "skimage.restoration", DARK, scikit_image),
    Contender(FLOOR, "scipy.fft", EXTENDED, lambda j: floor(j, "extended")),
    Contender(OURS, _OURS, EXTENDED, lambda j: ours(j, "extended")),
    Contender("SciPy loop", "scipy.fft", EXTENDED, lambda j: scipy_loop(j, EXTENDED)),
    Contender("flowdec", _FLOWDEC, REFLECTED_SMOOTH, lambda j: flowdec(j, "reflected")),
    Contender("sdeconv", _SDECONV, REFLECTED_RAW, lambda j: sdeconv(j, "reflected")),
    Contender("deconwolf", "tifffile", EXTENDED_DECONWOLF, lambda j: deconwolf(j, "extended")),
]


def inputs(shape: Shape, psf_shape: Shape) -> tuple[Array, Array]:
    """Return a simulated widefield recording of nuclei and its PSF, float32."""
    from pellucid.core.psf_theory import theoretical_psf
    from pellucid.core.simulation import nuclei, record

    z, y, x = psf_shape
    psf = theoretical_psf(
        "widefield", (0.2, 0.1, 0.1), na=1.1, wavelength_nm=525, refractive_index=1.33,
        shape=(z, y, x),
    ).values  # fmt: skip
    depth, height, width = shape
    counts = record(nuclei, psf, (depth, height, width), peak_photons=400).counts
    return counts.astype(np.float32), (psf / psf.sum()).astype(np.float32)


def prepare(folder: Path, shape: Shape, psf_shape: Shape, settings: dict[str, Any]) -> None:
    """Write the job, and the float64 reference of every handling, into `folder`."""
    image, psf = inputs(shape, psf_shape)
    np.savez(folder / "job.npz", image=image, psf=psf)
    job = Job(image, psf, settings["iterations"], settings["threads"])
    from scipy import fft

    with fft.set_workers(job.threads):
        for handling in {c.handling for c in CONTENDERS}:
            np.save(folder / f"{slug(repr(handling))}.npy", plain_loop(job, handling, np.float64))


def work(contender: Contender, folder: Path, settings: dict[str, Any]) -> None:
    """Warm up, then run once for every line that comes in, and answer each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    program = contender.name == "deconwolf"
    try:
        importlib.import_module(contender.module)
        from scipy import fft

        before_mb = 0.0 if program else _resident_mb()
        files = np.load(folder / "job.npz")
        job = Job(files["image"], files["psf"], **settings, folder=folder)
        run = contender.make(job)
    except ImportError as error:
        answer(missing=str(error))
        return
    with fft.set_workers(job.threads):
        result, _, _ = _timed(run)
        who = resource.RUSAGE_CHILDREN if program else resource.RUSAGE_SELF
        peak_mb = resource.getrusage(who).ru_maxrss / 1024 - before_mb
        np.save(folder / f"{slug(contender.key)}.npy", np.asarray(result))
        del result
        answer(peak_mb=peak_mb)
        for _ in sys.stdin:
            _, wall_s, cpu_s = _timed(run)
            answer(wall_s=wall_s, cpu_s=cpu_s)


def _timed(run: Callable[[], Any]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    if isinstance(result, tuple):  # a program, which measures itself
        return result
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _resident_mb() -> float:
    statm = Path("/proc/self/statm")  # the present size; elsewhere the largest so far must do
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def slug(name: object) -> str:
    return "".join(c if c.isalnum() else "-" for c in str(name))


def main() -> None:
    role, *words = sys.argv[1:]
    if role == "--prepare":
        shape, psf_shape, settings = (json.loads(word) for word in words[1:])
        prepare(Path(words[0]), tuple(shape), tuple(psf_shape), settings)
    else:
        work(CONTENDERS[int(words[0])], Path(words[1]), json.loads(words[2]))


if __name__ == "__main__":
    main()
