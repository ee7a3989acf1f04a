"""`pellucid train` and `pellucid restore` with several views: from two arms to one volume."""

import json

import numpy as np
import pytest
import torch

import pellucid
from pellucid.apps.cli import main
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import record_views, turned_arms
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.resampling import resample
from pellucid.core.simulation import shells
from pellucid.core.transform_series import SeriesRegistration, ViewTransform, first_view
from pellucid.data.psf_field_file import write_psf_field
from pellucid.data.transform_file import write_transforms
from pellucid.errors import InputError

UM = 0.2
WORLD = Grid((40, 40, 40), (UM, UM, UM), frame="world")
ARMS = turned_arms(
    (0, 90), WORLD, [gaussian((6 * UM, 2.5 * UM, 2.5 * UM), WORLD.spacing_um, (13, 7, 7))],
    planes_every=2, misplaced=0.5, seed=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings, PSFs, true transforms, and a model that was trained by angles alone."""
    folder = tmp_path_factory.mktemp("views")
    seen = record_views(shells, WORLD, ARMS, peak_photons=300, seed=4)
    for view, name in zip(seen.views, "ab", strict=True):
        pellucid.write(folder / f"{name}.tif", view.counts, voxel_um=view.grid.spacing_um)
        psf = view.psf.values.astype(np.float32)
        pellucid.write(folder / f"psf_{name}.tif", psf, voxel_um=view.grid.spacing_um)
    to_first = seen.views[0].world_to_view.inverse()
    place = seen.views[1].world_to_view @ to_first
    one = ViewTransform(0, 1, place.with_frames(source="world", target="view 1"), "registered")
    series = SeriesRegistration((0,), 2, (first_view(0), one))
    grids = [view.grid for view in seen.views]
    write_transforms(folder / "reg.json", series, grids, ["a.tif", "b.tif"], {})
    np.save(folder / "truth.npy", seen.truth)
    assert main(["train", str(recipe(folder))]) == 0
    return folder


def recipe(folder, **values):
    lines = {
        "output": folder / "model", "psf": f"[{folder / 'psf_a.tif'}, {folder / 'psf_b.tif'}]",
        "angles": "0,90", "steps": 4, "validate_every": 2, "shape": "16,16,16", "patch": "12,12,12",
        "width": 8, "calibration": 3, "calibrated_on": "[points, nuclei]", **values,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{k}: {v}\n" for k, v in lines.items() if v is not None))
    return path


def restoring(folder, out, *options, views="ab"):
    files = [str(folder / f"{name}.tif") for name in views]
    return main(["restore", *files, "--model", str(folder / "model"), "-o", str(out), *options])


def of_truth(folder, record):
    """The truth on the voxels of a result, and those of both."""
    world = Grid.from_dict(json.loads(record.read_text())["statistics"]["world"])
    truth = torch.from_numpy(np.load(folder / "truth.npy")).float()
    to_truth = Affine.identity(source=world.frame, target="world")
    return resample(truth, WORLD, world, target_to_source=to_truth).numpy()


def test_a_card_says_how_the_views_stand(folder):
    card = json.loads((folder / "model" / "card.json").read_text())
    assert card["operator"] == "blur of 2 views"
    assert card["voxel_um"] == pytest.approx((UM, UM, UM))
    assert [view["voxel_um"] for view in card["views"]] == [pytest.approx((2 * UM, UM, UM))] * 2
    turn = Affine.from_dict(card["views"][1]["world_to_view"]).linear
    np.testing.assert_allclose(turn, Affine.rotation("y", np.pi / 2).linear, atol=1e-12)
    assert all(net["views"] == 2 for net in card["networks"])


def test_views_are_restored_where_a_file_places_them(folder, tmp_path):
    out, map_ = tmp_path / "sharp.ome.tif", tmp_path / "believe.ome.tif"
    asked = ["--transforms", str(folder / "reg.json"), "--verdict", str(map_), "--fall-back"]
    assert restoring(folder, out, *asked) == 0
    image, believable = pellucid.open(out), pellucid.open(map_).read()
    assert image.voxel_um == pytest.approx((UM, UM, UM))
    assert believable.shape == image.read().shape
    assert 0 <= believable.min() <= believable.max() <= 1
    truth = of_truth(folder, tmp_path / "sharp.ome.tif.pellucid.json")
    inner = (slice(3, -3),) * 3
    assert ncc(image.read()[inner], truth[inner]) > 0.85
    assert not (tmp_path / "sharp_transforms.json").exists()


def test_a_dry_run_says_what_would_become_of_the_views(folder, tmp_path, capsys):
    out = tmp_path / "sharp.ome.tif"
    assert restoring(folder, out, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "a.tif, b.tif" in said
    assert "blur of 2 views" in said
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_is_refused_before_views_are_registered(folder, tmp_path, capsys):
    assert restoring(folder, tmp_path / "sharp.png", "--dry-run") == 1
    assert "the suffix chooses the format" in capsys.readouterr().err
    twice = str(tmp_path / "sharp.tif")
    assert restoring(folder, tmp_path / "sharp.tif", "--dry-run", "--verdict", twice) == 1
    assert "the verdict would replace the image" in capsys.readouterr().err


def test_views_are_registered_first_where_nothing_places_them(folder, tmp_path):
    out = tmp_path / "sharp.ome.zarr"
    assert restoring(folder, out, "--polish", "1") == 0
    found = json.loads((tmp_path / "sharp_transforms.json").read_text())
    assert found["transforms"][1]["how"] == "registered"
    truth = of_truth(folder, tmp_path / "sharp.ome.zarr.pellucid.json")
    inner = (slice(3, -3),) * 3
    assert ncc(pellucid.open(out).read()[inner], truth[inner]) > 0.85
    # what it wrote places the views of another run
    again = tmp_path / "again.ome.zarr"
    asked = ["--polish", "1", "--transforms", str(tmp_path / "sharp_transforms.json")]
    assert restoring(folder, again, *asked) == 0
    np.testing.assert_array_equal(pellucid.open(again).read(), pellucid.open(out).read())


def test_a_bad_time_point_stops_nothing(folder, tmp_path, capsys):
    for name in "ab":
        counts = pellucid.open(folder / f"{name}.tif").read().astype(np.float32)
        pellucid.write(tmp_path / f"{name}_0.tif", counts, voxel_um=(2 * UM, UM, UM))
        counts[3] = np.nan if name == "b" else counts[3]
        pellucid.write(tmp_path / f"{name}_1.tif", counts, voxel_um=(2 * UM, UM, UM))
    out = tmp_path / "sharp.ome.zarr"
    files = [str(tmp_path / f"{name}_{{t}}.tif") for name in "ab"]
    asked = ["--model", str(folder / "model"), "--transforms", str(folder / "reg.json")]
    assert main(["restore", *files, *asked, "--polish", "0", "-o", str(out)]) == 3
    assert "1 of 2 volumes failed" in capsys.readouterr().err
    both = pellucid.open(out)
    assert both.read(0).max() > 0
    assert np.isnan(both.read(1)).all()


@pytest.mark.parametrize("placed", [True, False])
def test_arrays_and_views_give_what_files_give(folder, tmp_path, placed):
    arrays = [pellucid.open(folder / f"{name}.tif").read() for name in "ab"]
    asked = ["--transforms", str(folder / "reg.json")] if placed else []
    assert restoring(folder, tmp_path / "out.tif", "--polish", "0", *asked) == 0
    views = arrays
    if placed:
        known = json.loads((folder / "reg.json").read_text())
        place = Affine.from_dict(known["transforms"][1]["world_to_view"])
        grids = [Grid.from_dict(view["grid"]) for view in known["views"]]
        first = Affine.identity(source="world", target="view 0")
        views = [
            pellucid.View(image, grid, transform)
            for image, grid, transform in zip(arrays, grids, (first, place), strict=True)
        ]
    answer = pellucid.restore(views, folder / "model", polish=0)
    assert answer.grid is not None
    written = pellucid.open(tmp_path / "out.tif").read()
    assert answer.image.shape == answer.grid.shape == written.shape
    scale = float(written.max())
    np.testing.assert_allclose(answer.image / scale, written / scale, atol=1e-3 if placed else 0.05)


def test_what_does_not_fit_is_refused_before_any_work(folder, tmp_path, capsys):
    out = tmp_path / "out.tif"

    def said(*options, views="ab"):
        assert restoring(folder, out, *options, views=views) in (1, 2)
        assert not out.exists()
        return capsys.readouterr().err

    assert "a model for 2 views, got 3" in said(views="abb")
    assert "expected two or more, got 1" in said(views="a")
    assert "the model is for" in said("--voxel-um", "1,1,1")
    assert "tiles restore one" in said("--tile", "8,16,16")
    known = json.loads((folder / "reg.json").read_text())
    other = tmp_path / "other.json"
    known["transforms"][1]["world_to_view"]["matrix"] = np.eye(4).tolist()
    other.write_text(json.dumps(known))
    assert "turned 90 degrees against the view" in said("--transforms", str(other))
    known["views"][1]["grid"]["shape"] = [8, 8, 8]
    other.write_text(json.dumps(known))
    assert "Register these views" in said("--transforms", str(other))
    with pytest.raises(InputError, match="a model for 2 views, got one"):
        pellucid.restore(np.ones((8, 8, 8)), folder / "model")
    image = np.random.default_rng(0).poisson(9, (20, 40, 40))
    grid = Grid((20, 40, 40), (2 * UM, UM, UM), frame="view 0")
    view = pellucid.View(image, grid, Affine.identity(source="world", target="view 0"))
    with pytest.raises(InputError, match="got some of each"):
        pellucid.restore([view, image], folder / "model")


def test_recipes_that_do_not_say_how_views_stand_are_refused(folder, tmp_path, capsys):
    def said(**values):
        assert main(["train", str(recipe(folder, output=tmp_path / "other", **values))]) in (1, 2)
        return capsys.readouterr().err

    assert "State the nominal angle" in said(angles=None)
    assert "2 files for 3 views" in said(angles="0,45,90")
    assert "several views need volumes" in said(shape="1,16,16")
    assert "Name all views of an object" in said(source="teacher", recordings=folder / "a.tif")
    both = f"[{folder / 'a.tif'}, {folder / 'b.tif'}]"
    assert "classical solution as teacher" in said(source="pairs", recordings=both, truths=both)
    assert "PSF on the voxels of the images" in said(voxel_um="1,1,1")
    assert not (tmp_path / "other").exists()


def test_recordings_teach_with_the_joint_solution_as_their_teacher(folder, tmp_path):
    both = f"{folder / 'a.tif'}, {folder / 'b.tif'}"
    values = {"recordings": f"[{both}, {both}]", "transforms": folder / "reg.json", "steps": 60}
    model = tmp_path / "taught"
    asked = recipe(
        folder, output=model, source="teacher", calibration=2, validate_every=30, **values
    )
    assert main(["train", str(asked)]) == 0
    errors = [row["held_out"] for row in json.loads((model / "card.json").read_text())["curves"][0]]
    # of two recordings the last says when to stop; it is the first once more
    assert min(errors[1:]) < 0.97 * errors[0]


def test_views_whose_blur_varies_are_trained_and_restored(folder, tmp_path):
    spacing = (2 * UM, UM, UM)
    psfs = [gaussian((w * UM, 2.5 * UM, 2.5 * UM), spacing, (7, 7, 7)) for w in (5, 7)]
    field = PsfField.of(psfs, [(0.0, 0.0, 0.0), (0.0, 0.0, 39 * UM)])
    write_psf_field(tmp_path / "sheet.npz", field)
    values = {"psf": tmp_path / "sheet.npz", "calibration": 2}
    model = tmp_path / "model"
    assert main(["train", str(recipe(folder, output=model, **values))]) == 0
    card = json.loads((model / "card.json").read_text())
    assert card["operator"] == "varying blur of 2 views"
    assert card["networks"][0]["positioned"]
    out = tmp_path / "sharp.tif"
    files = [str(folder / f"{name}.tif") for name in "ab"]
    asked = ["--model", str(model), "--transforms", str(folder / "reg.json"), "-o", str(out)]
    assert main(["restore", *files, *asked]) == 0
    truth = of_truth(folder, tmp_path / "sharp.tif.pellucid.json")
    inner = (slice(3, -3),) * 3
    assert ncc(pellucid.open(out).read()[inner], truth[inner]) > 0.85


def test_a_recipe_takes_the_transforms_that_restore_takes(folder, tmp_path):
    values = {"angles": None, "transforms": folder / "reg.json", "psf": folder / "psf_a.tif"}
    model = tmp_path / "by-transforms"
    assert main(["train", str(recipe(folder, output=model, calibration=2, **values))]) == 0
    card = json.loads((model / "card.json").read_text())
    true = json.loads((folder / "reg.json").read_text())["transforms"][1]["world_to_view"]
    assert Affine.from_dict(card["views"][1]["world_to_view"]) == Affine.from_dict(true)
