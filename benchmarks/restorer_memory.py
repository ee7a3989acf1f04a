"""Peak memory of restorers on one volume, sampled every 2 ms, against what they state.

    python benchmarks/restorer_memory.py --shape 128 300 300
"""

import argparse
import gc
import math
import threading
import time

import numpy as np
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import METHODS
from pellucid.core.deconvolution import roomy
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf_theory import gaussian
from pellucid.core.replay import Replay, decided
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.stages.work.resources import resident_bytes, return_freed_memory

START = 30.0


class Peak:
    """The largest memory of this process within a `with` block, beyond that at its beginning."""

    def __enter__(self) -> "Peak":
        self.before = self.largest = resident_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.largest = max(self.largest, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def problem_of(image: torch.Tensor, psf: torch.Tensor) -> Problem:
    """One view, on any device."""
    z, y, x = image.shape
    return Problem((Observation(image, Blur(psf.to(image.device), (z, y, x)), 5.0),))


def main() -> None:
    """Print one line for each restorer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 300, 300])
    shape = tuple(parser.parse_args().shape)
    return_freed_memory()
    psf = torch.from_numpy(roomy(gaussian((0.7, 0.25, 0.25), (0.3, 0.1, 0.1))))
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.poisson(20 + 30 * random.random(shape)).astype(np.float32))
    part = image[:48, :96, :96].contiguous()
    first, second = (RestorationNet(Architecture(width=8, refining=r)) for r in (False, True))
    network = Network(first, (second,))
    schedule = decided(Accelerated(max_iterations=2), problem_of(part, psf), START)
    restorers = {
        "matched, 2": RichardsonLucy(2, METHODS["matched"], start=START),
        "wiener-butterworth, 2": RichardsonLucy(2, METHODS["wiener-butterworth"], start=START),
        "replay": Replay(schedule),
        "guarded": Accelerated(max_iterations=4),
        "network, two passes": Polished(network, 0),
        "network, polished": Polished(network, 2),
    }
    stated = problem_of(torch.empty(shape, device="meta"), psf)
    volume = 4 * math.prod(stated.shape)
    print(f"padded volume {volume / 2**20:.0f} MiB, image {image.nbytes / 2**20:.0f} MiB")
    for name, restorer in restorers.items():
        restorer(problem_of(part, psf))
        gc.collect()
        begin = time.process_time()
        with Peak() as peak:
            restorer(problem_of(image, psf))
        held = peak.largest - peak.before + image.nbytes
        planned = restorer.peak_bytes(stated)
        print(
            f"{name:22s} {held / volume:5.2f} padded volumes, stated {planned / volume:5.2f}; beyond "
            f"{(held - planned) / 2**20:+.0f} MiB; {time.process_time() - begin:.1f} CPU s",
            flush=True,
        )


if __name__ == "__main__":
    main()
