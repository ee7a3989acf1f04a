"""PSF fields in place of a PSF: cropped, in one plane, in the verbs, and on the command line."""

import json

import numpy as np
import pytest

import pellucid
from microscopy_files import VOXEL_UM, recorded, save
from pellucid.apps.cli import main
from pellucid.core.deconvolution import deconvolve, usable_psf
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.data.psf_field_file import write_psf_field
from pellucid.data.record import read_record
from pellucid.errors import InputError
from pellucid.stages.deconvolution.memory import peak_bytes
from pellucid.stages.parameters import DeconvolveParameters


def widening(spacing=VOXEL_UM):
    psfs = [gaussian((0.6, 0.25 + w, 0.25 + w), spacing) for w in (0.0, 0.15, 0.3)]
    return PsfField.of(psfs, [[0, 0, 0], [0, 0, 1.3], [0, 0, 2.5]], ["three Gaussians"])


def test_a_field_that_does_not_vary_is_its_psf():
    psf = gaussian((0.6, 0.25, 0.25), VOXEL_UM)
    field = PsfField.of([psf, psf], [[0, 0, 0], [0, 0, 2.5]])
    for iterations in (3, None):
        one = deconvolve(recorded(), psf, iterations=iterations, background=20.0)
        other = deconvolve(recorded(), field, iterations=iterations, background=20.0)
        assert float((one.image - other.image).abs().max()) < 1e-3 * float(one.image.max())


def test_cropping_keeps_flux_and_centre():
    field = PsfField(2 * widening().psfs, widening().positions_um, VOXEL_UM)
    small = field.cropped(0.95)
    assert small.psfs[0].size < field.psfs[0].size
    np.testing.assert_allclose(small.psfs.sum(axis=(1, 2, 3)), 2.0, rtol=1e-6)
    for psf in small.psfs:
        assert np.unravel_index(psf.argmax(), psf.shape) == tuple(n // 2 for n in small.shape)


def test_an_image_of_one_plane_takes_the_planes_in_focus():
    assert usable_psf(widening(), (1, 24, 26)).shape[0] == 1
    assert pellucid.deconvolve(recorded((24, 26)), widening(), iterations=2).shape == (24, 26)
    with pytest.raises(InputError, match="several planes"):
        usable_psf(widening().focal_planes(), (6, 24, 26))


def test_memory_counts_the_kernels():
    asked = DeconvolveParameters.checked({"inputs": "a.tif", "output": "b.tif"})
    shape = (16, 64, 64)
    assert peak_bytes(shape, widening(), asked) > peak_bytes(shape, widening().typical, asked)


def test_the_command_deconvolves_with_a_field(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_psf_field(tmp_path / "field.npz", widening())
    raw = save("raw.ome.tif")
    command = ["deconvolve", raw, "--psf", "field.npz", "-o", "sharp.ome.tif", "--iterations", "3"]
    assert main([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["files"][0]["psfs"]["channel 0"]["notes"][:2] == [
        "three Gaussians",
        "from field.npz",
    ]
    assert main(command) == 0
    expected = pellucid.deconvolve(recorded(), widening(), iterations=3)
    found = pellucid.open("sharp.ome.tif").read()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.max())
    assert "field.npz" in str(read_record("sharp.ome.tif")["inputs"])


def test_a_field_is_inspected(tmp_path, capsys):
    path = tmp_path / "field.npz"
    write_psf_field(path, widening())
    assert main(["psf", "inspect", str(path)]) == 0
    assert "note: three Gaussians" in capsys.readouterr().out
    assert main(["psf", "inspect", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose([w[2] for w in said["fwhm_um"]], (0.25, 0.4, 0.55), rtol=0.1)
    assert said["kernels"] in (2, 3)
    assert main(["psf", "inspect", str(path), "--picture", str(tmp_path / "p.png")]) != 0


def test_the_command_refuses_a_field_on_other_voxels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_psf_field(tmp_path / "field.npz", widening((0.3, 0.2, 0.1)))
    assert main(["deconvolve", save("raw.ome.tif"), "--psf", "field.npz", "-o", "s.ome.tif"]) != 0
    assert "Make the field on the image's voxels" in capsys.readouterr().err
