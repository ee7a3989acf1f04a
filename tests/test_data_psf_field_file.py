"""PSF fields on disk: what was written comes back, and what is no field is refused."""

import numpy as np
import pytest

from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.data.psf_field_file import is_field_file, read_psf_field, write_psf_field
from pellucid.errors import InputError, OutputError


def widening():
    psfs = [gaussian((0.6 + w, 0.3, 0.3), (0.3, 0.1, 0.1), (9, 9, 9)) for w in (0.0, 0.4)]
    return PsfField.of(psfs, [[0, 0, 0], [3, 0, 0]], ["two Gaussians"])


def test_a_field_comes_back_as_it_was_written(tmp_path):
    path, field = tmp_path / "field.npz", widening()
    write_psf_field(path, field)
    assert is_field_file(path)
    again = read_psf_field(path)
    np.testing.assert_allclose(again.psfs, field.psfs, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(again.positions_um, field.positions_um)
    assert (again.spacing_um, again.notes) == (field.spacing_um, ("two Gaussians",))
    assert [p.name for p in tmp_path.iterdir()] == ["field.npz"]


def test_refuses_what_is_no_field(tmp_path):
    whole, path = tmp_path / "whole.npz", tmp_path / "field.npz"
    write_psf_field(whole, widening())
    path.write_bytes(whole.read_bytes()[:-300])
    assert not is_field_file(path)
    with pytest.raises(InputError, match="not a complete PSF field"):
        read_psf_field(path)
    np.savez(path, psfs=np.ones((1, 3, 3, 3)), positions_um=np.zeros((1, 3)))
    with pytest.raises(InputError, match="spacing_um is missing"):
        read_psf_field(path)
    np.savez(path, psfs=np.array([{}], object), positions_um=np.zeros(3), spacing_um=np.ones(3))
    with pytest.raises(InputError, match="not a complete PSF field"):
        read_psf_field(path)
    with pytest.raises(OutputError, match="exists already"):
        write_psf_field(whole, widening())
    with pytest.raises(OutputError, match=r"is a \.npz file"):
        write_psf_field(tmp_path / "field.tif", widening())
