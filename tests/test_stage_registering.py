"""Series of simulated dual views: every time mode, what is repaired, and what is advised."""

import json

import numpy as np
import pytest

import pellucid
from pellucid.apps.cli import main
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES
from pellucid.data.transform_file import read_transforms
from pellucid.errors import OutputError, ParameterError
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.registration.pair_registration import nominal_transforms
from pellucid.stages.registration.registering import reference_channels, register_series
from pellucid.stages.registration.view_series import open_views

SIZE = 40
WORLD = Grid((SIZE,) * 3, 0.5, origin_um=(0.0, 0.0, 0.0))
PSF = gaussian((1.5, 0.8, 0.8), (0.5, 0.5, 0.5))
TIMES = 6


def simulated(seed=3):
    arms = turned_arms((0, 90), WORLD, [PSF], misplaced=0.6, seed=seed)
    structure = STRUCTURES["filaments"]
    return record_views(structure, WORLD, arms, peak_photons=300, seed=seed)


RECORDING = simulated()
TRUTH = RECORDING.views[1].world_to_view @ RECORDING.views[0].world_to_view.inverse().with_frames(
    source="view 0", target="world"
)
FIRST, SECOND = (view.counts for view in RECORDING.views)
OTHER = simulated(seed=11).views[1].counts


def save(folder, firsts, seconds):
    for name, volumes in (("A", firsts), ("B", seconds)):
        for t, volume in enumerate(volumes):
            (folder / name).mkdir(exist_ok=True)
            pellucid.write(folder / name / f"t_{t}.tif", volume, voxel_um=(0.5, 0.5, 0.5))
    return [str(folder / "A"), str(folder / "B")]


def run(specs, angle=90, **parameters):
    views = open_views(specs)
    events = []
    series = register_series(
        views,
        RegistrationParameters(model="rigid", **parameters),
        events.append,
        nominal=nominal_transforms(views, (0, angle), "y"),
    )
    return series, events


def error(series, time):
    corners = WORLD.corners_um()
    found = series.world_to_view(time, 1).apply(corners)
    return float(np.linalg.norm(found - TRUTH.apply(corners), axis=1).max())


@pytest.mark.parametrize("mode", ["once", "previous", "each", "smoothed"])
def test_every_mode_finds_the_truth(tmp_path, mode):
    series, _ = run(save(tmp_path, [FIRST] * 3, [SECOND] * 3), over_time=mode)
    assert series.unmeasured == ()
    assert max(error(series, t) for t in range(3)) < 1.0
    assert series.world_to_view(0, 0).is_identity()
    expected = {"once": "reused", "smoothed": "smoothed"}.get(mode, "registered")
    assert series.at(2, 1).how == expected


def test_none_applies_the_nominal_transform(tmp_path):
    series, _ = run(save(tmp_path, [FIRST], [SECOND]), over_time="none")
    expected = Affine.rotation("y", np.pi / 2, centre_um=WORLD.centre_um)
    np.testing.assert_allclose(series.world_to_view(0, 1).matrix, expected.matrix, atol=1e-9)


@pytest.mark.parametrize("mode", ["previous", "each"])
def test_bad_time_points_are_repaired_and_listed(tmp_path, mode):
    seconds = [SECOND] * TIMES
    seconds[2] = np.full_like(SECOND, 100)
    seconds[3] = OTHER
    specs = save(tmp_path, [FIRST] * TIMES, seconds)
    path = tmp_path / "B" / "t_4.tif"
    path.write_bytes(path.read_bytes()[:1000])
    series, events = run(specs, over_time=mode)
    assert [t.time for t in series.unmeasured] == [2, 3, 4]
    assert "empty" in series.at(2, 1).reason
    assert "t_4.tif" in series.at(4, 1).reason
    assert max(error(series, t) for t in range(TIMES)) < 1.0
    assert sum(type(event).__name__ == "VolumeFailed" for event in events) == 3


def test_earlier_results_are_taken_over(tmp_path):
    specs = save(tmp_path, [FIRST] * 2, [SECOND] * 2)
    series, _ = run(specs)
    views = open_views(specs)
    again = register_series(views, RegistrationParameters(), done=series)
    assert again == series


def test_a_wrong_sign_is_advised(tmp_path):
    series, _ = run(save(tmp_path, [FIRST], [SECOND]), angle=-90, start="translation")
    assert "the angle may be 90." in series.at(0, 1).reason
    assert series.at(0, 1).how == "failed"


def test_a_mirrored_view_is_advised(tmp_path):
    flipped = np.ascontiguousarray(SECOND[:, ::-1])
    series, _ = run(save(tmp_path, [FIRST], [flipped]), start="translation")
    assert "Mirrored along y" in series.at(0, 1).reason


def test_a_reference_channel_is_named_numbered_or_a_sum():
    names = ("488", "561")
    assert reference_channels("561", names) == (1,)
    assert reference_channels("sum", names) == reference_channels("0,1", names) == (0, 1)
    with pytest.raises(ParameterError, match="'640' is no channel"):
        reference_channels("640", names)


def test_the_command_writes_everything_it_was_asked_for(tmp_path, capsys):
    specs = save(tmp_path, [FIRST] * 2, [SECOND] * 2)
    out = tmp_path / "t.json"
    options = ["--angles", "0,90", "--model", "rigid", "--over-time", "previous"]
    files = [
        "--itk", tmp_path / "itk", "--bigstitcher", tmp_path / "b.xml",
        "--picture", tmp_path / "p.png", "--registered", tmp_path / "reg",
    ]  # fmt: skip
    command = ["register", *specs, "-o", str(out), *options, *map(str, files)]
    assert main([*command, "--dry-run"]) == 0
    assert not out.exists()
    assert main(command) == 0
    assert error(read_transforms(out), 1) < 1.0
    assert sorted(p.name for p in (tmp_path / "itk").iterdir()) == [
        "view1_t0000.txt", "view1_t0001.txt",
    ]  # fmt: skip
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert (tmp_path / "t.json.pellucid.json").is_file()
    moved = pellucid.open(tmp_path / "reg" / "view1.ome.zarr")
    assert moved.shape == (2, 1, SIZE, SIZE, SIZE)
    middle = (slice(8, -8),) * 3
    agreement = np.corrcoef(moved.read(1)[middle].ravel(), FIRST[middle].ravel())[0, 1]
    assert agreement > 0.8
    capsys.readouterr()
    again = ["register", *specs, "-o", str(tmp_path / "u.json"), "--start", str(out)]
    assert main([*again, "--over-time", "none", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["transforms"][1]["how"] == "given"
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_folder_of_transforms_holds_one_run(tmp_path):
    specs = save(tmp_path, [FIRST] * 2, [SECOND] * 2)
    command = ["register", *specs, "-o", str(tmp_path / "t.json"), "--angles", "0,90",
               "--over-time", "none", "--itk", str(tmp_path / "itk")]  # fmt: skip
    assert main(command) == 0
    (tmp_path / "itk" / "notes.txt").write_text("mine")
    assert main([*command, "--time", "1", "--overwrite"]) == 0
    assert {p.name for p in (tmp_path / "itk").iterdir()} == {"view1_t0001.txt", "notes.txt"}


def test_the_command_exits_3_with_the_list(tmp_path, capsys):
    specs = save(tmp_path, [FIRST] * 2, [SECOND, np.full_like(SECOND, 100)])
    command = ["register", *specs, "-o", str(tmp_path / "t.json"), "--angles", "0,90"]
    assert main([*command, "--model", "rigid"]) == 3
    assert "t=1 view 1: The moving view is empty" in capsys.readouterr().err
    assert read_transforms(tmp_path / "t.json").at(1, 1).how == "repaired"
    assert main([*command, "--angles", "0,90,180", "--overwrite"]) == 2


@pytest.mark.parametrize("option", ["--itk", "--picture", "--registered"])
def test_what_fails_beside_the_transforms_is_not_there_and_they_are(
    tmp_path, capsys, monkeypatch, option
):
    from matplotlib.figure import Figure

    from pellucid.stages.registration import register_files

    specs = save(tmp_path, [FIRST] * 2, [SECOND] * 2)
    name = {"--itk": "write_atomically", "--registered": "sampled", "--picture": "savefig"}[option]
    place = Figure if option == "--picture" else register_files
    original, calls = getattr(place, name), []

    def full(*rest, **options):
        calls.append(rest)
        if len(calls) == (1 if option == "--picture" else 2):
            raise OutputError("the disk is full") if option == "--registered" else OSError(28, "")
        return original(*rest, **options)

    monkeypatch.setattr(place, name, full)
    beside = tmp_path / ("beside.png" if option == "--picture" else "beside")
    command = ["register", *specs, "-o", str(tmp_path / "t.json"), "--angles", "0,90",
               "--over-time", "none", option, str(beside)]  # fmt: skip
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "The transforms are whole in t.json" in said
    assert not list(tmp_path.glob("beside*"))
    record = json.loads((tmp_path / "t.json.pellucid.json").read_text())
    assert record["statistics"]["outputs"] == [str(tmp_path / "t.json")]
    assert len(read_transforms(tmp_path / "t.json").transforms) == 4


@pytest.mark.parametrize("kind", ["BigStitcher", "ITK"])
def test_transforms_of_other_programs_are_a_start(tmp_path, kind):
    specs = save(tmp_path, [FIRST], [SECOND])
    out = tmp_path / "t.json"
    files = ["--itk", str(tmp_path / "itk"), "--bigstitcher", str(tmp_path / "b.xml")]
    assert main(["register", *specs, "-o", str(out), "--angles", "0,90", "--model", "rigid", *files]) == 0
    given = {"BigStitcher": tmp_path / "b.xml", "ITK": tmp_path / "itk" / "view1_t0000.txt"}[kind]
    again = ["register", *specs, "-o", str(tmp_path / "u.json"), "--start", str(given)]
    assert main([*again, "--over-time", "none"]) == 0
    first, second = (read_transforms(p).world_to_view(0, 1) for p in (out, tmp_path / "u.json"))
    np.testing.assert_allclose(second.matrix, first.matrix, atol=1e-9)


def test_projections_are_a_start_by_name(tmp_path):
    specs = save(tmp_path, [FIRST], [SECOND])
    command = ["register", *specs, "-o", str(tmp_path / "t.json"), "--angles", "0,90"]
    assert main([*command, "--model", "rigid", "--start", "projections"]) == 0
    found = read_transforms(tmp_path / "t.json")
    assert found.at(0, 1).registration.start == "projections"
    assert error(found, 0) < 1.0
