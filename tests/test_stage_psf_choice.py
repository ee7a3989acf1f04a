"""Which PSF belongs to which channel."""

import numpy as np
import pytest

import pellucid
from microscopy_files import VOXEL_UM, recorded, save, save_psf
from pellucid.errors import InputError, ParameterError
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.psf.choice import channel_psfs, one_each

WIDEFIELD = {"modality": "widefield", "na": 1.1, "refractive_index": 1.33}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def psfs(image, channels=None, **choices):
    recording = pellucid.open(save("raw.ome.tif", image, overwrite=True))
    parameters = DeconvolveParameters.checked({"inputs": "raw.ome.tif", "output": "s", **choices})
    taken = range(recording.shape[1]) if channels is None else channels
    return channel_psfs(parameters, recording, tuple(taken))


def test_a_widefield_psf_is_as_deep_as_the_stack(folder):
    thin = psfs(recorded((6, 24, 26)), wavelength_nm=525, **WIDEFIELD)[0]
    deep = psfs(recorded((80, 24, 26)), wavelength_nm=525, **WIDEFIELD)[0]
    plane = psfs(recorded((24, 26)), wavelength_nm=525, **WIDEFIELD)[0]
    assert plane.shape[0] == 1
    assert thin.shape[0] > 6
    assert deep.shape[0] == 81
    given = psfs(recorded((80, 24, 26)), wavelength_nm=525, psf_shape="9,11,11", **WIDEFIELD)[0]
    assert given.shape == (9, 11, 11)


def test_one_wavelength_for_all_or_one_for_each(folder):
    image = recorded((2, 6, 24, 26))
    same = psfs(image, wavelength_nm=525, psf_shape="5,9,9", **WIDEFIELD)
    np.testing.assert_array_equal(same[0].values, same[1].values)
    blue, red = psfs(image, wavelength_nm="461,650", psf_shape="5,9,9", **WIDEFIELD)
    assert blue.values.max() > red.values.max()
    with pytest.raises(ParameterError, match=r"wavelength_nm: 3 values for 2 channels"):
        psfs(image, wavelength_nm="461,525,650", **WIDEFIELD)
    assert one_each((), 2, "excitation_nm") == [None, None]


def test_a_psf_file_of_several_channels_follows_the_image(folder):
    narrow, wide = (pellucid.open(save_psf(f"{i}.tif", voxel_um=v)).read() for i, v in
                    enumerate([VOXEL_UM, VOXEL_UM]))  # fmt: skip
    wide = np.roll(narrow, 1, axis=2) + narrow + np.roll(narrow, -1, axis=2)
    save("both.ome.tif", np.stack([narrow, wide]))
    image = recorded((2, 6, 24, 26))
    assert (
        psfs(image, psf="both.ome.tif")[0].values.max()
        > psfs(image, psf="both.ome.tif")[1].values.max()
    )
    (second,) = psfs(image, channels=[1], psf="both.ome.tif")
    np.testing.assert_array_equal(second.values, psfs(image, psf="both.ome.tif")[1].values)
    with pytest.raises(InputError, match="a PSF of 2 channels for an image of 3"):
        psfs(recorded((3, 6, 24, 26)), psf="both.ome.tif")
    save("times.ome.tif", np.stack([narrow, wide])[:, None])
    with pytest.raises(InputError, match="a PSF of 2 time points"):
        psfs(image, psf="times.ome.tif")


def test_the_z_of_a_plane_is_no_reason_to_resample(folder):
    save_psf("psf.tif")
    raw = save("plane.ome.tif", recorded((24, 26)), voxel_um=(5.0, 0.1, 0.1))
    recording = pellucid.open(raw)
    parameters = DeconvolveParameters.checked({"inputs": raw, "output": "s", "psf": "psf.tif"})
    (psf,) = channel_psfs(parameters, recording, (0,))
    assert psf.shape[0] == 1
    assert not any("resampled" in note for note in psf.notes)


@pytest.mark.parametrize(
    ("voxel_um", "why"),
    [((300.0, 100.0, 100.0), "expected micrometres between"), ((3.0, 9.0, 9.0), "within one voxel")],
)
def test_a_wrong_voxel_size_names_both_files_and_what_mends_it(folder, voxel_um, why):
    save_psf("bead.tif")
    recording = pellucid.open(save("cells.ome.tif", recorded((6, 24, 26)), voxel_um=voxel_um))
    asked = DeconvolveParameters.checked({"inputs": "cells.ome.tif", "output": "s", "psf": "bead.tif"})
    with pytest.raises(InputError, match=why) as refused:
        channel_psfs(asked, recording, (0,))
    numbers = ", ".join(f"{v:g}" for v in voxel_um)
    for said in (f"cells.ome.tif has voxels of ({numbers}) um", "bead.tif of (0.", "--psf-voxel-um"):
        assert said in str(refused.value)
