"""Affine registration by other programs, each behind one function: two arrays in, a matrix out.

Run as a script by another Python that has them:

    python registration_peers.py NAME pair.npz        prints {"matrix": ..., "seconds": CPU seconds}

Every function returns the 4x4 matrix from fixed to moving voxels, ZYX. Settings are the ones that a
careful user reaches for: rigid then affine where the program can, a correlation metric, pyramids.
"""

import json
import resource
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
Matrix = NDArray[np.float64]

FLIP = np.eye(4)[[2, 1, 0, 3]]
"""Reverses ZYX and XYZ."""


def about(linear: Matrix, translation: Matrix, centre: Matrix) -> Matrix:
    """Return the 4x4 matrix of x -> linear (x - centre) + centre + translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + translation - linear @ centre
    return matrix


def elastix(fixed: Volume, moving: Volume) -> Matrix:
    """Rigid then affine, normalised correlation."""
    import itk

    parameters = itk.ParameterObject.New()
    for name in ("rigid", "affine"):
        stage = parameters.GetDefaultParameterMap(name, 4)
        stage["Metric"] = ["AdvancedNormalizedCorrelation"]
        stage["AutomaticTransformInitialization"] = ["true" if name == "rigid" else "false"]
        parameters.AddParameterMap(stage)
    _, result = itk.elastix_registration_method(
        itk.image_view_from_array(fixed), itk.image_view_from_array(moving),
        parameter_object=parameters, log_to_console=False,
    )  # fmt: skip
    total = np.eye(4)
    for index in range(result.GetNumberOfParameterMaps()):
        stage = result.GetParameterMap(index)
        values = np.array([float(v) for v in stage["TransformParameters"]])
        centre = np.array([float(v) for v in stage["CenterOfRotationPoint"]])
        if len(values) == 6:
            import SimpleITK

            euler = SimpleITK.Euler3DTransform()
            euler.SetParameters(values.tolist())
            linear = np.array(euler.GetMatrix()).reshape(3, 3)
            total = about(linear, values[3:], centre) @ total
        else:
            total = about(values[:9].reshape(3, 3), values[9:], centre) @ total
    return FLIP @ total @ FLIP


def ants(fixed: Volume, moving: Volume) -> Matrix:
    """ANTs' "Affine" (it has its own rigid stage)."""
    import ants

    result = ants.registration(
        ants.from_numpy(fixed), ants.from_numpy(moving), type_of_transform="Affine"
    )
    transform = ants.read_transform(result["fwdtransforms"][0])
    values, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)
    return about(values[:9].reshape(3, 3), values[9:], centre)


def simpleitk(fixed: Volume, moving: Volume) -> Matrix:
    """Rigid then affine, correlation, regular-step gradient descent on three levels."""
    import SimpleITK

    first, second = SimpleITK.GetImageFromArray(fixed), SimpleITK.GetImageFromArray(moving)
    rigid = SimpleITK.CenteredTransformInitializer(
        first, second, SimpleITK.Euler3DTransform(),
        SimpleITK.CenteredTransformInitializerFilter.GEOMETRY,
    )  # fmt: skip

    def run(start: object) -> object:
        method = SimpleITK.ImageRegistrationMethod()
        method.SetMetricAsCorrelation()
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.2)
        method.SetInterpolator(SimpleITK.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        method.SetInitialTransform(start, inPlace=False)
        found = method.Execute(first, second)
        return found.GetNthTransform(0) if hasattr(found, "GetNthTransform") else found

    found = SimpleITK.Euler3DTransform(run(rigid))
    start = SimpleITK.AffineTransform(3)
    start.SetMatrix(found.GetMatrix())
    start.SetCenter(found.GetCenter())
    start.SetTranslation(found.GetTranslation())
    end = SimpleITK.AffineTransform(run(start))
    linear = np.array(end.GetMatrix()).reshape(3, 3)
    total = about(linear, np.array(end.GetTranslation()), np.array(end.GetCenter()))
    return FLIP @ total @ FLIP


def dipy(fixed: Volume, moving: Volume) -> Matrix:
    """Centre of mass, translation, rigid, affine; mutual information."""
    from dipy.align import affine_registration

    _, matrix = affine_registration(
        moving, fixed, moving_affine=np.eye(4), static_affine=np.eye(4),
        pipeline=["center_of_mass", "translation", "rigid", "affine"],
    )  # fmt: skip
    return np.asarray(matrix)


def greedy(fixed: Volume, moving: Volume) -> Matrix:
    """Affine from image centres, normalised mutual information (patch NCC did worse)."""
    import SimpleITK
    from picsl_greedy import Greedy3D

    first, second = SimpleITK.GetImageFromArray(fixed), SimpleITK.GetImageFromArray(moving)
    program = Greedy3D()
    program.execute(
        "-d 3 -a -dof 12 -m NMI -n 100x50x10 -ia-image-centers -i fixed moving -o matrix",
        fixed=first, moving=second, matrix=None,
    )  # fmt: skip
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return FLIP @ to_ras @ np.asarray(program["matrix"]) @ to_ras @ FLIP


def _stitcher_views(fixed: Volume, moving: Volume) -> dict[str, object]:
    """Return what multiview-stitcher's pairwise functions are called with: voxels of 1, no offset."""
    import xarray

    voxel, origin = dict.fromkeys("zyx", 1.0), dict.fromkeys("zyx", 0.0)
    return {
        "fixed_data": xarray.DataArray(fixed, dims=list("zyx")),
        "moving_data": xarray.DataArray(moving, dims=list("zyx")),
        "fixed_spacing": dict(voxel), "moving_spacing": dict(voxel),
        "fixed_origin": dict(origin), "moving_origin": dict(origin),
        "initial_affine": np.eye(4), "transform_types": ["Rigid", "Affine"],
    }  # fmt: skip


def stitcher_ants(fixed: Volume, moving: Volume) -> Matrix:
    """multiview-stitcher's affine registration by ANTsPy, its settings, rigid then affine."""
    from multiview_stitcher.registration import registration_ANTsPy

    return np.asarray(registration_ANTsPy(**_stitcher_views(fixed, moving))["affine_matrix"])


def stitcher_elastix(fixed: Volume, moving: Volume) -> Matrix:
    """multiview-stitcher's affine registration by elastix, its settings, rigid then affine."""
    from multiview_stitcher.registration import registration_ITKElastix

    return np.asarray(registration_ITKElastix(**_stitcher_views(fixed, moving))["affine_matrix"])


PEERS: dict[str, Callable[[Volume, Volume], Matrix]] = {
    "elastix": elastix, "ants": ants, "simpleitk": simpleitk, "dipy": dipy, "greedy": greedy,
    "stitcher-ants": stitcher_ants, "stitcher-elastix": stitcher_elastix,
}  # fmt: skip


def main() -> None:
    """Run one peer on one pair; print one line of JSON last."""
    name, path = sys.argv[1:]
    pair = np.load(path)
    fixed, moving = (pair[k].astype(np.float32) for k in ("fixed", "moving"))
    before = resource.getrusage(resource.RUSAGE_SELF)
    matrix = PEERS[name](fixed, moving)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"matrix": matrix.tolist(), "seconds": seconds}))


if __name__ == "__main__":
    main()
