"""What is measured of a volume: from samples read once and from every core once, small, by any engine."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from microscopy_files import save, save_psf
from pellucid.apps.cli import main
from pellucid.core.tiling import Tiling
from pellucid.data.manifest import Manifest
from pellucid.data.recording import open_recording
from pellucid.errors import InputError, NotFiniteError
from pellucid.stages.pieces import volume_statistics
from pellucid.stages.pieces.volume_statistics import (
    PERCENTILES,
    LazyVolume,
    combined,
    core_statistics,
    measured,
    sampled,
)
from pellucid.stages.work.engine import InProcess

SHAPE = (16, 128, 192)


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(3)
    light = np.zeros(SHAPE)
    light[4:12, 20:100, 10:60] = rng.gamma(2.0, 60.0, (8, 80, 50))
    light[:, :, 64:] += 2 * np.hypot(*np.mgrid[:128, :128])
    light[:, :, 128:] = 0
    return (100 + rng.poisson(light) + rng.normal(0, 2, SHAPE)).astype(np.uint16)


@dataclass
class Counted:
    """A volume that says where it was read."""

    volume: np.ndarray
    reads: list = field(default_factory=list)

    @property
    def shape(self):
        return self.volume.shape

    def __getitem__(self, box):
        self.reads.append(box)
        return self.volume[box]


def tiling_of(core):
    return Tiling(SHAPE, core, (0, 0, 0), (1, 1, 1), 0)


def statistics(counts, core, levels):
    tiling = tiling_of(core)
    return combined(levels, [core_statistics(counts[t.core], levels) for t in tiling], counts.size)


def test_a_volume_is_described_as_it_is_whatever_its_cores(counts):
    levels = sampled(counts, None)
    for core in (SHAPE, (16, 128, 64), (16, 64, 64)):
        said = statistics(counts, core, levels)
        assert said.start == pytest.approx((counts.mean() - levels.background) / levels.gain, rel=0.01)
        truth = np.percentile(counts, PERCENTILES)
        assert list(said.percentiles.values()) == pytest.approx(truth, rel=0.02)
        assert said.recorded_share == 1
    dark = [t.index for t in tiling_of((16, 64, 64)) if t.core[2].start == 128]
    assert list(said.empty) == dark
    assert said.typical not in said.empty


def test_what_was_never_recorded_takes_no_part(counts):
    holed = counts.copy()
    holed[:, :50] = 0
    levels = sampled(holed, None)
    assert levels.fill_value == 0
    said = statistics(holed, (16, 64, 64), levels)
    assert said.recorded_share == pytest.approx(78 / 128)
    seen = counts[:, 50:]
    assert said.start == pytest.approx((seen.mean() - levels.background) / levels.gain, rel=0.01)
    assert said.percentiles["0.1"] == pytest.approx(np.percentile(seen, 0.1), abs=1)


def test_samples_are_read_once(counts):
    volume = Counted(counts)
    levels = sampled(volume, None)
    assert levels.noise["reliable"]
    read = [str(box) for box in volume.reads]
    assert len(set(read)) == len(read)
    voxels = sum(counts[box].size for box in volume.reads)
    assert voxels == 2 * counts.size  # small blocks to find fill, large ones for all the rest


def test_what_is_listed_is_small_and_is_not_measured_again(counts, tmp_path):
    place, tiling = (0, 0), tiling_of((16, 64, 64))
    volume = Counted(counts)
    first = Manifest(tmp_path / "run.jsonl", {})
    known = measured({place: volume}, tiling, None, "auto", InProcess(), first)
    assert max(len(json.dumps(first.facts(part))) for part in first) < 1000
    assert len(first) == 1 + len(tiling)
    read = len(volume.reads)
    again = Manifest(tmp_path / "run.jsonl", {}, resume=True)
    assert measured({place: volume}, tiling, None, "auto", InProcess(), again) == known
    assert len(volume.reads) == read
    assert statistics(counts, (16, 64, 64), known[place].levels) == known[place]


def test_a_background_above_all_and_a_volume_of_fill_are_refused(counts, tmp_path):
    def run(background, fill, name):
        done = Manifest(tmp_path / name, {})
        return measured({(0, 0): counts}, tiling_of(SHAPE), background, fill, InProcess(), done)

    with pytest.raises(InputError, match="5000 counts were stated"):
        run(5000.0, "none", "a")
    levels = sampled(np.zeros(SHAPE, np.uint16), 0.0, "none")
    nothing = core_statistics(counts[:0], levels)
    assert math.isfinite(nothing.light)
    with pytest.raises(InputError, match="never recorded"):
        combined(levels, [nothing], counts.size)


def test_voxels_that_are_not_finite_are_named_with_their_place(counts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    series = np.stack([np.stack([counts, counts])] * 2).astype(np.float32)
    series[1, 0, 9, 100, 100] = np.nan
    save("nan.ome.zarr", series)
    save_psf("psf.tif")
    volume = LazyVolume(open_recording("nan.ome.zarr"), 1, 0)
    with pytest.raises(NotFiniteError, match=r"nan.ome.zarr t=1 c=0: .* in plane 9 "):
        volume[slice(6, 12), slice(64, 128), slice(64, 128)]
    # as in a volume so large that no sample meets them
    monkeypatch.setattr(volume_statistics, "sampled", lambda _, *how: sampled(counts, *how))
    asked = ["deconvolve", "nan.ome.zarr", "--psf", "psf.tif", "-o", "out.ome.zarr"]
    assert main([*asked, "--tile", "16,128,128", "--iterations", "2"]) == 1
    said = capsys.readouterr().err
    assert "nan.ome.zarr t=1 c=0: voxels that are NaN or infinite in plane 9" in said
    assert "--resume" not in said
    assert not list(tmp_path.glob("out*"))
