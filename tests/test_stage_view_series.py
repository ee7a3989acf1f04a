"""Views as they lie on disk, opened as series: names, numbers, channels, and what is refused."""

import numpy as np
import pytest

import pellucid
from pellucid.errors import InputError, ParameterError
from pellucid.stages.registration.view_series import open_view, open_views

VOXEL_UM = (1.0, 0.5, 0.5)
SHAPE = (3, 6, 8)


def stack(value, shape=SHAPE):
    return np.full(shape, value, np.uint16)


def save(path, value, shape=SHAPE, voxel_um=VOXEL_UM, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pellucid.write(path, stack(value, shape), voxel_um=voxel_um, **options)


@pytest.fixture
def dispim(tmp_path):
    """Two arms, two colours, time points 8 to 11, as diSPIM tools write them."""
    for n, colour in enumerate(("488", "561")):
        for m, arm in enumerate(("SPIMA", "SPIMB")):
            for t in range(8, 12):
                save(tmp_path / colour / arm / f"{arm}_{t}.tif", 100 * m + 1000 * n + t)
    return tmp_path


@pytest.mark.parametrize(
    "specs", [["."], ["{c}/SPIMA", "{c}/SPIMB"], ["{c}/SPIMA/SPIMA_{t}.tif", "{c}/SPIMB/*_{t}.tif"]]
)
def test_a_dispim_recording_opens_by_its_folder_or_a_pattern(dispim, monkeypatch, specs):
    monkeypatch.chdir(dispim)
    first, second = open_views(specs)
    assert first.times == second.times == (8, 9, 10, 11)
    assert first.channels == second.channels == ("488", "561")
    assert (first.shape, first.voxel_um, first.dtype) == (SHAPE, VOXEL_UM, np.uint16)
    assert second.read(t=2, c=1).max() == 1110
    assert second.grid.frame == "view 1"
    assert len(second.files) == 8


def test_a_pattern_may_be_absolute_and_a_folder_may_be_a_view(dispim):
    pattern, folder = open_views([f"{dispim}/488/SPIMA/SPIMA_{{t}}.tif", dispim / "488" / "SPIMB"])
    assert pattern.times == folder.times
    assert (pattern.read(1, 0).max(), folder.read(1, 0).max()) == (9, 109)


def test_folders_in_a_view_s_folder_are_its_channels(tmp_path):
    for colour in ("green", "red"):
        for t in range(2):
            save(tmp_path / "A" / colour / f"t{t:03}.tif", 10 * len(colour) + t)
    view = open_view(tmp_path / "A")
    assert (view.times, view.channels) == ((0, 1), ("green", "red"))
    assert view.read(1, 1).max() == 31


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif", ".tif"])
def test_a_file_holds_time_points_and_channels_itself(tmp_path, suffix):
    for name in ("A", "B"):
        image = np.arange(6, dtype=np.uint16).reshape(3, 2, 1, 1, 1) + np.zeros(SHAPE, np.uint16)
        pellucid.write(tmp_path / f"{name}{suffix}", image, voxel_um=VOXEL_UM)
    views = open_views([tmp_path / f"A{suffix}", tmp_path / f"B{suffix}"], time="1:3", channel="1")
    assert views[0].times == (1, 2)
    assert [views[1].read(t, 0).max() for t in (0, 1)] == [3, 5]


def test_views_that_are_channels_of_one_file_are_told_apart(tmp_path):
    image = np.arange(4, dtype=np.uint16).reshape(4, 1, 1, 1) + np.zeros(SHAPE, np.uint16)
    names = ("A488", "B488", "A561", "B561")
    pellucid.write(tmp_path / "all.ome.tif", image, voxel_um=VOXEL_UM, channels=names)
    first, second = open_views([f"{tmp_path}/all.ome.tif::0,2", f"{tmp_path}/all.ome.tif::B488,B561"])
    assert (first.read(0, 1).max(), second.read(0, 1).max()) == (2, 3)


@pytest.mark.parametrize(
    ("time", "taken"), [("9", (9,)), ("8:10", (8, 9)), ("9:", (9, 10, 11)), ("11,8", (11, 8)),
                        ("8:12:2", (8, 10))],
)  # fmt: skip
def test_time_is_selected_by_the_numbers_in_the_names(dispim, time, taken):
    assert open_view(dispim / "488" / "SPIMA", time=time).times == taken


@pytest.mark.parametrize("time", ["7", "8,8", "x", "11:9", "::"])
def test_a_selection_that_takes_nothing_is_refused(dispim, time):
    with pytest.raises(ParameterError, match="time"):
        open_view(dispim / "488" / "SPIMA", time=time)


def test_missing_time_points_are_named(dispim):
    (dispim / "488" / "SPIMA" / "SPIMA_10.tif").unlink()
    with pytest.raises(InputError, match="time point 10 missing between 8 and 11"):
        open_view(dispim / "488" / "SPIMA")
    assert open_view(dispim / "488" / "SPIMA", time="8:10").times == (8, 9)
    with pytest.raises(InputError, match="time point 10 of channel 488 is missing"):
        open_view(dispim / "{c}" / "SPIMA")


def test_views_of_other_lengths_or_channels_are_refused(dispim):
    (dispim / "488" / "SPIMB" / "SPIMB_11.tif").unlink()
    with pytest.raises(InputError, match="SPIMA has 4 time points and SPIMB 3: 11 only in SPIMA"):
        open_views([dispim / "488" / "SPIMA", dispim / "488" / "SPIMB"])
    with pytest.raises(InputError, match=r"2 channels \(488, 561\) and SPIMB 1"):
        open_views([dispim / "{c}" / "SPIMA", dispim / "561" / "SPIMB"])
    with pytest.raises(ParameterError, match="expected two or more, got 1"):
        open_views([dispim / "488" / "SPIMA"])


def test_one_bad_file_is_known_and_stops_nothing(dispim):
    folder = dispim / "488" / "SPIMA"
    whole = (folder / "SPIMA_9.tif").read_bytes()
    (folder / "SPIMA_9.tif").write_bytes(whole[: len(whole) // 2])
    save(folder / "SPIMA_10.tif", 1, shape=(2, 6, 8), overwrite=True)
    view = open_view(folder)
    assert [t for t, _ in view.broken] == [9, 10]
    assert view.read(0, 0).max() == 8
    with pytest.raises(InputError, match=r"SPIMA_9\.tif"):
        view.read(1, 0)
    with pytest.raises(InputError, match=r"\(c, z, y, x\) is \(1, 2, 6, 8\)"):
        view.read(2, 0)


def test_files_that_are_all_bad_are_refused(dispim):
    folder = dispim / "488" / "SPIMA"
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of its 4 files can be read"):
        open_view(folder)


def test_an_unknown_voxel_size_is_asked_for_and_may_differ_between_views(tmp_path):
    for name in ("A", "B"):
        np.save(tmp_path / f"{name}.npy", stack(1))
    names = [tmp_path / "A.npy", tmp_path / "B.npy"]
    with pytest.raises(InputError, match="voxel size is not in the file"):
        open_views(names)
    first, second = open_views(names, voxel_um=(1, 0.2, 0.2, 2, 0.3, 0.3))
    assert (first.voxel_um, second.voxel_um) == ((1, 0.2, 0.2), (2, 0.3, 0.3))
    with pytest.raises(ParameterError, match="for each of 2, got 4 numbers"):
        open_views(names, voxel_um=(1, 2, 3, 4))


def test_names_that_do_not_number_are_refused(tmp_path):
    for name in ("A_1_2", "A_2_3"):
        save(tmp_path / f"{name}.tif", 1)
    with pytest.raises(InputError, match="no single number tells"):
        open_view(tmp_path)
    with pytest.raises(InputError, match="no file matches this pattern"):
        open_view(tmp_path / "B_{t}.tif")
    assert open_view(tmp_path / "A_{t}_*.tif").times == (1, 2)
