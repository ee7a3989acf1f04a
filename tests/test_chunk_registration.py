"""Registration in chunks: one chunk, files in chunks, interruption, and what is refused."""

import json
import pickle
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from pellucid.core.chunk_registration import Chunk, chunked, likeness, moving_box, register_chunk
from pellucid.core.geometry import Affine, Grid
from pellucid.core.simulation import STRUCTURES
from pellucid.core.transform_series import SeriesRegistration, ViewTransform, first_view
from pellucid.data.output import create_output
from pellucid.data.record import read_record
from pellucid.data.recording import open_recording
from pellucid.data.transform_file import read_transforms
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError, OutputError, ParameterError
from pellucid.stages.parameters import RegisterParameters
from pellucid.stages.pieces.volume_statistics import LazyVolume
from pellucid.stages.registration import coarse_views
from pellucid.stages.registration.chunk_registration import ChunkTask
from pellucid.stages.registration.coarse_views import coarsened, few_voxels, to_coarse, to_fine
from pellucid.stages.registration.register_files import plan_registration, run_registration
from pellucid.stages.registration.view_series import open_views
from pellucid.stages.work.engine import InProcess

SHAPE = (96, 96, 96)
SAME = Affine.identity(source="fixed", target="moving")
FIXED, MOVING = Grid(SHAPE, frame="fixed"), Grid(SHAPE, frame="moving")


def bent(points):
    z, y, x = np.moveaxis(np.asarray(points, dtype=np.float64) / 96, -1, 0)
    return 2.0 * np.stack([np.sin(4 * y), np.cos(3 * z + x) - 0.5, np.sin(4 * x + 1)], axis=-1)


@cache
def views():
    """Two views of nuclei, blurred alike; the second is where the first is after `bent`."""
    fixed = np.asarray(STRUCTURES["nuclei"](SHAPE, 3), dtype=np.float64)
    q = np.moveaxis(np.indices(SHAPE), 0, -1).astype(np.float64)
    p = q
    for _ in range(12):
        p = q - bent(p)
    moving = ndimage.map_coordinates(fixed, np.moveaxis(p, -1, 0), order=3)
    pair = [ndimage.gaussian_filter(v, 1.2).clip(0) for v in (fixed, moving)]
    scale = 200 / pair[0].max()
    rng = np.random.default_rng(0)
    return [rng.poisson(v * scale + 3).astype(np.uint16) for v in pair]


def test_cores_partition_the_view_evenly_and_are_read_with_an_overlap():
    tiling = chunked(Grid((100, 130, 200)), (64, 64, 64))
    assert tiling.core_shape == (50, 65, 67)
    assert tiling.halo == (7, 9, 9)
    seen = np.zeros(tiling.shape, dtype=int)
    for tile in tiling:
        seen[tile.core] += 1
    assert (seen == 1).all()


def test_chosen_chunks_are_cubes_in_micrometres():
    tiling = chunked(Grid((96, 384, 384), (4.0, 1.0, 1.0)), None)
    assert tiling.core_shape == (24, 96, 96)


@pytest.mark.parametrize(("psf", "said"), [(None, "16, 16, 16"), ((41, 21, 21), "41, 21, 21")])
def test_chunks_too_small_to_register_are_refused(psf, said):
    with pytest.raises(ParameterError, match=said):
        chunked(Grid((96, 96, 96)), (12, 12, 12), psf)


def test_noise_and_equal_voxels_show_no_structure():
    noise = np.random.default_rng(0).poisson(20, (40, 40, 40))
    assert abs(likeness(noise)) < 0.02
    assert likeness(np.full((8, 8, 8), 7.1)) == 0
    assert likeness(views()[0]) > 0.5


def test_a_chunk_is_found_where_it_lies():
    fixed, moving = views()
    start, stop = (40, 20, 30), (92, 72, 82)
    part = FIXED.crop(start, stop)
    box = moving_box(part, MOVING, SAME)
    lies = MOVING.crop([s.start for s in box], [s.stop for s in box])
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    found = register_chunk(Chunk(7, fixed[inside], moving[box], part, lies), SAME)
    centre = np.array(found.centre_um)
    assert found.index == 7
    assert found.model == "affine"
    assert np.abs(found.transform.apply(centre) - centre - bent(centre)).max() < 0.3
    assert found.centre_sigma_um < 0.2


def test_a_chunk_without_structure_has_a_reason_and_no_transform():
    noise = np.random.default_rng(0).poisson(20, (40, 40, 40))
    grid = FIXED.crop((0, 0, 0), (40, 40, 40))
    lies = MOVING.crop((0, 0, 0), (40, 40, 40))
    found = register_chunk(Chunk(0, noise, views()[1][:40, :40, :40], grid, lies), SAME)
    assert found.transform is None
    assert found.reason.startswith("Empty: the fixed view")


def test_a_chunk_beyond_the_other_view_has_no_place():
    away = Affine.translation((0, 0, 90), source="fixed", target="moving")
    assert moving_box(FIXED.crop((0, 0, 40), (40, 40, 80)), MOVING, away) is None


def write(path, volume, voxel_um=(1.0, 1.0, 1.0)):
    with create_output(path, ImageDescription((1, 1, *volume.shape), "uint16", voxel_um)) as out:
        out.write(0, 0, volume)
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"view{n}.ome.zarr", v) for n, v in enumerate(views())]


def asked(tmp_path, files, **more):
    values = {"inputs": files, "output": tmp_path / "found.json", "angles": (0, 0), "chunks": 48}
    return RegisterParameters.checked({**values, "device": "cpu", **more})


def test_files_are_registered_in_chunks_and_the_field_is_in_the_file(tmp_path, files):
    outcome = run_registration(plan_registration(asked(tmp_path, files)))
    assert not outcome.bad
    found = read_transforms(tmp_path / "found.json").at(0, 1)
    assert found.field is not None
    points = np.moveaxis(np.indices((5, 5, 5)), 0, -1) * 16.0 + 16
    error = np.linalg.norm(found.field.apply(points) - points - bent(points), axis=-1)
    affine = np.linalg.norm(found.world_to_view.apply(points) - points - bent(points), axis=-1)
    assert np.median(error) < 0.4
    assert np.median(error) < 0.6 * np.median(affine)
    record = json.loads((tmp_path / "found.json.pellucid.json").read_text())
    chunks = record["statistics"]["fields"]["t=0 view 1"]["chunks"]
    assert len(chunks) == 8
    assert not list(tmp_path.glob("*unfinished*"))


class _Interrupted(InProcess):
    """An engine that is stopped after three chunks."""

    def run(self, keys, task, listed, on_done):
        super().run(keys[:3], task, listed, on_done)
        raise KeyboardInterrupt


class _Counting(InProcess):
    done = 0

    def run(self, keys, task, listed, on_done):
        def counted(one):
            type(self).done += 1
            on_done(one)

        super().run(keys, task, listed, counted)


def test_an_interrupted_run_goes_on_and_ends_alike(tmp_path, files):
    with pytest.raises(KeyboardInterrupt):
        run_registration(plan_registration(asked(tmp_path, files)), engine=_Interrupted())
    assert not (tmp_path / "found.json").exists()
    with pytest.raises(OutputError, match="chunks"):
        run_registration(plan_registration(asked(tmp_path, files, chunks=64, resume=True)))
    run_registration(plan_registration(asked(tmp_path, files, resume=True)), engine=_Counting())
    assert _Counting.done == 5
    run_registration(plan_registration(asked(tmp_path, files, output=tmp_path / "anew.json")))
    both = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("found", "anew")]
    assert both[0]["transforms"] == both[1]["transforms"]


def test_views_without_any_structure_are_not_believed(tmp_path):
    rng = np.random.default_rng(0)
    empty = [
        write(tmp_path / f"empty{n}.ome.zarr", rng.poisson(9, (40, 40, 40)).astype(np.uint16))
        for n in range(2)
    ]
    outcome = run_registration(plan_registration(asked(tmp_path, empty, chunks=20, start="identity")))
    assert len(outcome.bad) == 1
    assert "As a whole" in outcome.bad[0][1]
    applied = asked(
        tmp_path, empty, chunks=20, over_time="none", start="identity", output=tmp_path / "b.json"
    )
    outcome = run_registration(plan_registration(applied))
    assert "none of 8 could be registered. Empty" in outcome.bad[0][1]


def test_what_chunks_cannot_do_is_refused_before_any_work(tmp_path, files):
    with pytest.raises(ParameterError, match="smoothed is not done in chunks"):
        plan_registration(asked(tmp_path, files, over_time="smoothed"))
    with pytest.raises(ParameterError, match="Choose larger chunks"):
        plan_registration(asked(tmp_path, files, chunks=8))
    with pytest.raises(ParameterError, match="only a registration in chunks"):
        plan_registration(asked(tmp_path, files, chunks=None, resume=True))
    with pytest.raises(ParameterError, match="chunks"):
        asked(tmp_path, files, chunks="64,64")


def test_few_voxels_are_means_wherever_they_come_from(tmp_path):
    ramp = np.arange(40, dtype=np.uint16)[:, None, None] * 4 + np.zeros((1, 600, 300), np.uint16)
    path = write(tmp_path / "ramp.ome.zarr", ramp, (2.0, 1.0, 1.0))
    lazy = (LazyVolume(open_recording(path), 0, 0),)
    grid = Grid(ramp.shape, (2.0, 1.0, 1.0))
    image, small = few_voxels(lazy, grid, 200_000)
    assert image.shape == small.shape
    assert image.size <= 200_000
    # a voxel's value is that of the ramp at its centre
    assert np.allclose(image[:, 5, 5], 4 * small.index_to_um.apply(np.indices(
        (len(image), 1, 1)).reshape(3, -1).T)[:, 0] / 2)  # fmt: skip


def test_transforms_of_views_on_few_voxels_are_those_of_the_views(tmp_path, monkeypatch):
    monkeypatch.setattr(coarse_views, "COARSE_VOXELS", 1000)
    names = []
    for name, um in (("a", (1.0, 1.0, 1.0)), ("b", (2.0, 0.5, 0.5))):
        names.append(str(write(tmp_path / f"{name}.ome.zarr", np.zeros((16, 24, 40), np.uint16), um)))
    views = open_views(names)
    coarse = coarsened(views)
    for view, small in zip(views, coarse, strict=True):
        assert small.is_coarser
        assert np.prod(small.shape) <= 1000
        assert small.read(0, 0).shape == small.shape
        # the middle of the first coarse voxel is the mean of the middles of those that it holds
        factor = np.round(np.divide(small.voxel_um, view.voxel_um)).astype(int)
        held = view.grid.crop((0, 0, 0), factor.tolist())
        np.testing.assert_allclose(small.origin_um, held.centre_um)
    place = Affine.rotation("y", 0.3, source="world", target="view 1")
    fine = SeriesRegistration((0,), 2, (first_view(0), ViewTransform(0, 1, place, "given")))
    small = to_coarse(fine, coarse).world_to_view(0, 1)
    point = np.array([3.0, 5.0, 7.0])
    expected = place.apply(point) - coarse[1].origin_um
    np.testing.assert_allclose(small.apply(point - coarse[0].origin_um), expected)
    back = to_fine(to_coarse(fine, coarse), coarse).world_to_view(0, 1)
    np.testing.assert_allclose(back.matrix, place.matrix, atol=1e-12)


def test_a_damaged_chunk_is_one_without_signal(tmp_path, files):
    class Damaged(LazyVolume):
        def __getitem__(self, box):
            raise InputError("view0: a chunk cannot be read.")

    volume = LazyVolume(open_recording(files[0]), 0, 0)
    task = ChunkTask(
        chunked(FIXED, (48, 48, 48)), (FIXED, MOVING),
        {(0, 0): (Damaged(volume.recording, 0, 0),), (0, 1): (volume,)}, {(0, 1): SAME},
        "affine", None, "cpu",
    )  # fmt: skip
    made = task.compute((0, 1, 0), task.read((0, 1, 0)))
    assert made.transform is None
    assert "cannot be read" in made.reason


def test_a_task_travels_and_reads_the_same_elsewhere(files):
    volumes = [(LazyVolume(open_recording(file), 0, 0),) for file in files]
    task = ChunkTask(
        chunked(FIXED, (48, 48, 48)), (FIXED, MOVING), {(0, n): v for n, v in enumerate(volumes)},
        {(0, 1): SAME}, "affine", None, "cpu",
    )  # fmt: skip
    here, there = task.read((0, 1, 5)), pickle.loads(pickle.dumps(task)).read((0, 1, 5))
    assert np.array_equal(here.fixed, there.fixed)
    assert np.array_equal(here.moving, there.moving)
    assert here.moving_grid == there.moving_grid


def test_the_command_fuses_through_the_field_of_a_file(tmp_path, files):
    from pellucid.apps.cli import main

    field = tmp_path / "field.json"
    assert main([
        "register", *files, "--angles", "0,0", "--chunks", "48", "-o", str(field), "--device", "cpu",
        "--json",
    ]) == 0  # fmt: skip
    straight = tmp_path / "straight.json"
    content = json.loads(field.read_text())
    for transform in content["transforms"]:
        transform.pop("field", None)
    straight.write_text(json.dumps(content))
    likeness_to_first = []
    for name, transforms in (("through", field), ("without", straight)):
        out = tmp_path / f"{name}.ome.zarr"
        assert main([
            "fuse", *files, "--transforms", str(transforms), "--method", "average", "-o", str(out),
            "--cover", "overlap", "--no-projections", "--device", "cpu", "--json",
        ]) == 0  # fmt: skip
        first = read_record(out)["statistics"]["world"]["origin_um"]
        inside = tuple(slice(round(20 - o), round(76 - o)) for o in first)
        fused, wanted = open_recording(out).read()[inside], views()[0][20:76, 20:76, 20:76]
        likeness_to_first.append(np.corrcoef(fused.ravel(), wanted.ravel())[0, 1])
    assert likeness_to_first[0] > likeness_to_first[1]
    assert 1 - likeness_to_first[0] < 0.95 * (1 - likeness_to_first[1])
