"""Deconvolution with the blur that varies, against one PSF; unmatched against matched; times.

Recordings come from a field known at 9 places an axis and expanded to 1e-5; restorers know it at 5
places, to the accuracy of `pellucid.deconvolve`. Structures and seeds chose no parameter.

    python benchmarks/varying_quality.py                    # quality, some 40 minutes on one core
    python benchmarks/varying_quality.py --field coma --peaks 400 --seeds 1
    python benchmarks/varying_quality.py --times            # 64x256x256
"""

import argparse
import time
import warnings
from statistics import median

import numpy as np
import torch

from pellucid.core.accelerated import Accelerated, alpha_for
from pellucid.core.back_projectors import Matched, WienerButterworth
from pellucid.core.deconvolution import FIELD_ACCURACY
from pellucid.core.operators import Blur
from pellucid.core.optics import Layers, Optics
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import focus_um, gaussian, theoretical_psf
from pellucid.core.quality import ncc
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.simulation import STRUCTURES
from pellucid.core.varying_blur import VaryingBlur
from pellucid.errors import RunawayWarning

SHAPE = (32, 64, 64)
SPACING_UM = (0.3, 0.1, 0.1)
BACKGROUND = 2.0
UNMATCHED = WienerButterworth(cutoff_fwhm=2**-0.5)  # what `Accelerated` goes back with


def depth(places):
    """NA 1.4 oil into water-like tissue (1.36), confocal, 4 to 14 um below the cover glass."""
    psfs, at = [], []
    for depth_um in np.linspace(3.6, 12.0, places):
        layers = Layers(1.36, float(depth_um))
        psfs.append(
            theoretical_psf(
                "confocal", SPACING_UM, na=1.4, wavelength_nm=525, excitation_nm=488,
                refractive_index=1.515, layers=layers, shape=(31, 31, 31),
            )
        )  # fmt: skip
        at.append((focus_um(Optics(1.4, 525, 1.515, layers)) - 4.0, 0.0, 0.0))
    return PsfField.of(psfs, at)


def width(places):
    """A Gaussian that widens towards the corners: 1.2 x 0.25 um in the middle, twice that outside."""
    psfs, at = [], []
    half = 0.5 * (SHAPE[1] - 1) * SPACING_UM[1]
    for y in np.linspace(-1, 1, places):
        for x in np.linspace(-1, 1, places):
            f = 1 + (x**2 + y**2) / 2
            psfs.append(gaussian((1.2 * f, 0.25 * f, 0.25 * f), SPACING_UM, (25, 15, 15)))
            at.append((0.0, half * (1 + y), half * (1 + x)))
    return PsfField.of(psfs, at)


def coma(places):
    """A light sheet whose detection (NA 0.8) has coma that grows linearly along x, to 0.3 waves RMS."""
    n, nz, (dz, dy, _) = 31, 15, SPACING_UM
    f = np.fft.fftfreq(4 * n, dy)
    fy, fx = np.meshgrid(f, f, indexing="ij")
    r, angle = np.hypot(fy, fx) / (0.8 / 0.525), np.arctan2(fy, fx)
    inside = r <= 1
    kz = np.sqrt(np.maximum((1.33 / 0.525) ** 2 - fy**2 - fx**2, 0))
    psfs, at = [], []
    for x in np.linspace(0, 1, places):
        waves = 0.3 * x * np.sqrt(8) * (3 * r**3 - 2 * r) * np.cos(angle)
        planes = []
        for z in (np.arange(nz) - nz // 2) * dz:
            pupil = inside * np.exp(2j * np.pi * (waves + kz * z))
            spread = np.fft.fftshift(np.abs(np.fft.ifft2(pupil)) ** 2)
            c = 2 * n
            planes.append(spread[c - n // 2 : c + n // 2 + 1, c - n // 2 : c + n // 2 + 1])
            planes[-1] = planes[-1] * np.exp(-0.5 * (z / 0.7) ** 2)
        psfs.append(Psf.normalised(np.stack(planes), SPACING_UM))
        at.append((0.0, 0.0, x * (SHAPE[2] - 1) * SPACING_UM[2]))
    return PsfField.of(psfs, at)


FIELDS = {"depth": depth, "width": width, "coma": coma}


def recorded(exact, structure, peak, seed):
    truth = torch.from_numpy(STRUCTURES[structure](exact.domain_shape, seed)).float() * peak
    mean = exact.forward(truth).clamp_min(0) + BACKGROUND
    image = torch.poisson(mean, generator=torch.Generator().manual_seed(seed))
    return image, truth[exact.window].double().numpy()


def quality(name, peaks, seeds):
    exact = VaryingBlur.of(FIELDS[name](9), SHAPE, accuracy=1e-5)
    known = FIELDS[name](5)
    varying = VaryingBlur.of(known, SHAPE, accuracy=FIELD_ACCURACY)
    z, y, x = (0.5 * (n - 1) * s for n, s in zip(SHAPE, SPACING_UM, strict=True))
    central = np.maximum(varying.expansion.psf_at((z, y, x)), 0)
    blurs = {
        "varying": varying,
        "mean PSF": varying.mean,
        "central PSF": Blur(torch.from_numpy(central / central.sum()).float(), SHAPE),
    }
    print(f"\n{name}: rank {varying.expansion.rank} (recorded with rank {exact.expansion.rank})")
    print("structure, peak, seed: NCC of the recording | guarded, its own stop: "
          f"{', '.join(blurs)} | plain: unmatched - matched after 3, 5, 10 iterations")  # fmt: skip
    gains, gaps = {b: [] for b in blurs}, {3: [], 5: [], 10: []}
    for peak in peaks:
        for structure in STRUCTURES:
            for seed in range(100, 100 + seeds):
                image, truth = recorded(exact, structure, peak, seed)
                row = {}
                for label, blur in blurs.items():
                    problem = Problem((Observation(image, blur, BACKGROUND),))
                    row[label] = ncc(Accelerated()(problem).image.double().numpy(), truth)
                problem = Problem((Observation(image, varying, BACKGROUND),))
                unmatched = UNMATCHED.tuned(alpha_for(problem))
                for n, gap in gaps.items():
                    both = [
                        ncc(RichardsonLucy(n, way)(problem).image.double().numpy(), truth)
                        for way in (unmatched, Matched())
                    ]
                    gap.append(both[0] - both[1])
                for label, score in row.items():
                    gains[label].append(row["varying"] - score)
                print(f"{structure}, {peak:g}, {seed}: {ncc(image.double().numpy(), truth):.4f} | "
                      + ", ".join(f"{s:.4f}" for s in row.values()) + " | "
                      + ", ".join(f"{gap[-1]:+.4f}" for gap in gaps.values()), flush=True)  # fmt: skip
    for label in ("mean PSF", "central PSF"):
        print(f"{name}: varying - {label}: {_summary(gains[label])}")
    for n, gap in gaps.items():
        print(f"{name}: unmatched - matched after {n}: {_summary(gap)}", flush=True)


def _summary(differences):
    wins = sum(d > 0 for d in differences)
    return (f"median {median(differences):+.4f}, worst {min(differences):+.4f}, best "
            f"{max(differences):+.4f}, above 0 in {wins} of {len(differences)}")  # fmt: skip


def times(shape=(64, 256, 256)):
    print(f"{shape}, CPU seconds (and wall) of forward and adjoint together; the guarded restorer")
    for name, make in FIELDS.items():
        field = make(5)
        # the same field, stretched over the larger image
        scale = np.array([(n - 1) / (m - 1) for n, m in zip(shape, SHAPE, strict=True)])
        field = PsfField(field.psfs, field.positions_um * scale, SPACING_UM)
        varying = VaryingBlur.of(field, shape, accuracy=FIELD_ACCURACY)
        image = torch.poisson(
            torch.full(shape, 20.0), generator=torch.Generator().manual_seed(0)
        )
        base = None
        for blur in (varying.mean, varying):
            problem = Problem((Observation(image, blur, BACKGROUND),))
            e = torch.rand(blur.domain_shape)
            cpu, wall = [], []
            for _ in range(3):
                start, begin = time.process_time(), time.perf_counter()
                blur.adjoint(blur.forward(e))
                cpu.append(time.process_time() - start)
                wall.append(time.perf_counter() - begin)
            start, begin = time.process_time(), time.perf_counter()
            RichardsonLucy(5)(problem)
            five = time.process_time() - start
            base = base or (median(cpu), five)
            peak = RichardsonLucy(5).peak_bytes(problem) / 2**30
            print(f"{name}, {blur!r}: {median(cpu):.2f} ({median(wall):.2f}), "
                  f"{median(cpu) / base[0]:.1f}x; 5 matched iterations {five:.1f}, "
                  f"{five / base[1]:.1f}x; {peak:.2f} GiB planned", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--field", choices=FIELDS, action="append")
    parser.add_argument("--peaks", type=lambda s: [float(p) for p in s.split(",")], default=[40, 400])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--times", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", RunawayWarning)
    if asked.times:
        times()
    else:
        for field in asked.field or FIELDS:
            quality(field, asked.peaks, asked.seeds)
