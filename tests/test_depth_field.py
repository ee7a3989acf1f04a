"""PSF fields of a refractive-index mismatch: as fine as needed, and what optics says of them."""

import numpy as np
import pytest

import pellucid
from pellucid.apps.cli import main
from pellucid.core.depth_field import depth_field
from pellucid.core.optics import Layers, Optics
from pellucid.core.psf import Psf, fwhm_um
from pellucid.core.psf_theory import focus_um, gaussian
from pellucid.data.psf_field_file import read_psf_field
from pellucid.data.record import read_record
from pellucid.errors import ParameterError

VOXEL_UM = (0.3, 0.1, 0.1)


def widening(depth_um):
    return gaussian((0.8 + 0.3 * np.sqrt(depth_um + 0.1), 0.3, 0.3), VOXEL_UM, (25, 9, 9))


def test_depths_are_as_many_as_the_accuracy_needs():
    rough = depth_field(widening, lambda d: 1.1 * d, 20.0, accuracy=0.1)
    fine = depth_field(widening, lambda d: 1.1 * d, 20.0, accuracy=0.01)
    assert len(rough.psfs) < len(fine.psfs)
    np.testing.assert_allclose(fine.positions_um[[0, -1], 0], [0.0, 22.0])
    for depth in (0.7, 3.3, 14.2):
        exact = widening(depth).values
        found = fine.expanded(1e-4).psf_at((1.1 * depth, 0, 0))
        assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)
    with pytest.raises(ParameterError, match="more than 0"):
        depth_field(widening, lambda d: d, 0.0)


def test_paraxially_the_focus_moves_by_the_ratio_of_the_indices():
    optics = Optics(0.3, 525, 1.515, Layers(1.33, 30.0))
    assert focus_um(optics) == pytest.approx(30.0 * 1.515 / 1.33, abs=0.4)
    assert focus_um(Optics(0.3, 525, 1.515)) == 0.0


def test_the_command_makes_a_field_that_widens_with_depth(tmp_path, capsys):
    path = tmp_path / "depth.npz"
    numbers = "--modality confocal --na 1.1 --wavelength-nm 525 --excitation-nm 488"
    optics = "--refractive-index 1.33 --sample-index 1.40 --voxel-um 1,0.3,0.3 --first-um 5"
    image = "--planes 20 --psf-shape 21,21,21"
    command = ["psf", "field", *numbers.split(), *optics.split(), *image.split(), "-o", str(path)]
    assert main(command) == 0
    field = read_psf_field(path)
    assert field.positions_um[0, 0] == pytest.approx(-5.0, abs=0.1)
    assert field.positions_um[-1, 0] == pytest.approx(19.0, abs=1.0)
    first, last = (fwhm_um(Psf.normalised(psf, field.spacing_um)) for psf in field.psfs[[0, -1]])
    assert last[0] > 1.02 * first[0]
    assert read_record(path)["command"] == "psf field"
    assert "emitters 0 to" in capsys.readouterr().out
    assert main(command) != 0
    assert main([*command[:-2], "-o", str(tmp_path / "other.npz"), "--planes", "1"]) != 0


def test_the_command_makes_the_field_of_a_sheet_from_the_detections_psf(tmp_path, capsys):
    voxel_um = (0.4, 0.2, 0.2)
    psf = gaussian((2.0, 0.5, 0.5), voxel_um, (15, 7, 7)).values.astype(np.float32)
    pellucid.write(tmp_path / "objective.tif", psf, voxel_um=voxel_um)
    path = tmp_path / "sheet.npz"
    asked = ["psf", "sheet", str(tmp_path / "objective.tif"), "-o", str(path)]
    numbers = "--fwhm-um 1.2 --wavelength-nm 488 --columns 101 --waist-um 4"
    assert main([*asked, *numbers.split()]) == 0
    field = read_psf_field(path)
    widths = [fwhm_um(Psf.normalised(psf, field.spacing_um))[0] for psf in field.psfs]
    thinnest = field.positions_um[int(np.argmin(widths)), 2]
    assert abs(thinnest - 4) < 3
    assert widths[-1] > 1.2 * min(widths)
    assert read_record(path)["command"] == "psf sheet"
    assert main([*asked, *numbers.split()]) == 1
    assert "exists" in capsys.readouterr().err
