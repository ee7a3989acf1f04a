"""The public face: few verbs, loaded when used, and arrays in, arrays out."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import pellucid
from pellucid.core.psf_theory import gaussian
from pellucid.errors import InputError, OutputError, ParameterError

PSF = gaussian((2.0, 2.5, 2.5), (1.0, 1.0, 1.0)).values


def recorded(shape, dtype=np.uint16):
    rng = np.random.default_rng(0)
    image = np.full(shape, 20.0)
    image[..., 8:12, 8:14] += 300.0
    return rng.poisson(image).astype(dtype)


def test_the_public_names_are_these():
    assert sorted(pellucid.__all__) == dir(pellucid)
    nouns = ["Affine", "Grid", "Registration", "View", "__version__"]
    verbs = ["deconvolve", "fuse", "measure", "open", "register", "restore", "stitch", "train", "write"]
    assert dir(pellucid) == [*nouns, *verbs]
    for name in pellucid.__all__:
        assert getattr(pellucid, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'deconvolv'"):
        pellucid.deconvolv  # noqa: B018


def test_the_version_is_the_package_s():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert pellucid.__version__ == project["version"]


def test_importing_costs_no_torch():
    code = (
        "import sys, pellucid, pellucid.apps.cli, pellucid.stages.parameters; "
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'tensorstore') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("shape", [(6, 24, 22), (24, 22)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_arrays_come_back_as_float32_of_their_shape(shape, dtype):
    image = recorded(shape, np.float64).clip(0, 255).astype(dtype)
    psf = PSF if len(shape) == 3 else PSF[len(PSF) // 2]
    sharp = pellucid.deconvolve(image, psf, iterations=2)
    assert type(sharp) is np.ndarray
    assert (sharp.shape, sharp.dtype) == (shape, np.float32)
    assert sharp.min() >= 0
    assert sharp.max() > image.max() - 20.0


def test_tensors_come_back_as_tensors_and_agree_with_arrays():
    image = recorded((6, 24, 22)).astype(np.float32)
    from_array = pellucid.deconvolve(image, PSF, method="matched", iterations=3)
    from_tensor = pellucid.deconvolve(torch.tensor(image), torch.tensor(PSF), "matched", 3)
    assert isinstance(from_tensor, torch.Tensor)
    assert from_tensor.dtype == torch.float32
    np.testing.assert_allclose(from_tensor.numpy(), from_array, rtol=1e-5, atol=1e-3)


def test_the_default_sharpens():
    image = recorded((8, 24, 22))
    sharp = pellucid.deconvolve(image, PSF)
    assert np.abs(np.diff(sharp, axis=2)).max() > np.abs(np.diff(image.astype(float), axis=2)).max()


def test_nothing_to_deconvolve_is_zero():
    for value in (0, 7):
        sharp = pellucid.deconvolve(np.full((4, 16, 16), value, np.uint16), PSF)
        assert sharp.dtype == np.float32
        assert not sharp.any()


def test_what_cannot_be_deconvolved_is_refused():
    image = recorded((6, 24, 22)).astype(float)
    with pytest.raises(ParameterError, match=r"method must be one of matched.*'winer'"):
        pellucid.deconvolve(image, PSF, "winer")
    with pytest.raises(InputError, match=r"got uint16 \(1, 1, 6, 24, 22\)\. Give one channel"):
        pellucid.deconvolve(image[None, None].astype(np.uint16), PSF)
    with pytest.raises(InputError, match="flat"):
        pellucid.deconvolve(image, np.ones((5, 5, 5)))
    image[2, 3, 4] = np.nan
    with pytest.raises(InputError, match="1 of 3168 voxels are NaN"):
        pellucid.deconvolve(image, PSF)


def test_an_absent_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParameterError, match=r"cuda was asked for.*no usable GPU.*auto or cpu"):
        pellucid.deconvolve(recorded((6, 24, 22)), PSF, device="cuda")


@pytest.mark.parametrize("name", ["a.ome.zarr", "a.ome.tif", "a.tif"])
def test_written_images_open_with_their_voxel_size(tmp_path, name):
    image = recorded((2, 3, 8, 24, 22)).astype(np.float32)
    path = pellucid.write(
        tmp_path / name, image, voxel_um=(0.3, 0.1, 0.2), channels=("a", "b", "c")
    )
    back = pellucid.open(path)
    assert back.shape == (2, 3, 8, 24, 22)
    np.testing.assert_allclose(back.voxel_um, (0.3, 0.1, 0.2), rtol=1e-6)
    np.testing.assert_array_equal(back.read(1, 2), image[1, 2])


def test_integers_are_scaled_and_never_clipped(tmp_path):
    image = np.array([[0.0, 1.0], [2.5, 90_000.0]])
    pellucid.write(tmp_path / "a.ome.zarr", image, voxel_um=(1, 1, 1), dtype="uint16")
    stored = pellucid.open(tmp_path / "a.ome.zarr").read()[0]
    assert stored.max() == 45_000
    with pytest.raises(OutputError, match="smallest value is -1, which uint16 cannot hold"):
        pellucid.write(tmp_path / "b.tif", -image[:1, 1:], voxel_um=(1, 1, 1), dtype="uint16")
    with pytest.raises(InputError, match=r"got shape \(2,\)"):
        pellucid.write(tmp_path / "c.tif", np.ones(2), voxel_um=(1, 1, 1))


def test_measure_is_the_core_s():
    quality = pellucid.measure(recorded((6, 32, 32)), (0.3, 0.1, 0.1))
    assert quality.shape == (6, 32, 32)
