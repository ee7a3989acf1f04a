"""Pellucid: fluorescence microscopy made clear. The public verbs, loaded when first used.

>>> import pellucid
>>> recording = pellucid.open("embryo.ome.tif")                                # doctest: +SKIP
>>> psf = pellucid.open("bead.tif").read()                                     # doctest: +SKIP
>>> sharp = pellucid.deconvolve(recording.read(t=0, c=0), psf)                 # doctest: +SKIP
>>> pellucid.write("sharp.ome.zarr", sharp, voxel_um=recording.voxel_um)       # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.core.geometry import Affine as Affine
    from pellucid.core.geometry import Grid as Grid
    from pellucid.core.quality import measure as measure
    from pellucid.core.registration import Registration as Registration
    from pellucid.core.views import View as View
    from pellucid.data.recording import open_recording as open
    from pellucid.stages.deconvolution.arrays import deconvolve as deconvolve
    from pellucid.stages.deconvolution.arrays import write as write
    from pellucid.stages.fusion.arrays import fuse as fuse
    from pellucid.stages.networks.arrays import restore as restore
    from pellucid.stages.networks.arrays import train as train
    from pellucid.stages.registration.arrays import register as register
    from pellucid.stages.stitching.arrays import stitch as stitch

__version__ = "0.1.0"
__all__ = [
    "Affine", "Grid", "Registration", "View", "__version__", "deconvolve", "fuse", "measure", "open",
    "register", "restore", "stitch", "train", "write",
]  # fmt: skip

# Where each verb lives. torch takes seconds to import, so nothing is imported before it is used.
_VERBS = {
    "Affine": ("pellucid.core.geometry", "Affine"),
    "Grid": ("pellucid.core.geometry", "Grid"),
    "Registration": ("pellucid.core.registration", "Registration"),
    "View": ("pellucid.core.views", "View"),
    "deconvolve": ("pellucid.stages.deconvolution.arrays", "deconvolve"),
    "fuse": ("pellucid.stages.fusion.arrays", "fuse"),
    "measure": ("pellucid.core.quality", "measure"),
    "open": ("pellucid.data.recording", "open_recording"),
    "register": ("pellucid.stages.registration.arrays", "register"),
    "restore": ("pellucid.stages.networks.arrays", "restore"),
    "stitch": ("pellucid.stages.stitching.arrays", "stitch"),
    "train": ("pellucid.stages.networks.arrays", "train"),
    "write": ("pellucid.stages.deconvolution.arrays", "write"),
}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}; it has {__all__}")
    module, attribute = _VERBS[name]
    verb = getattr(import_module(module), attribute)
    globals()[name] = verb
    return verb


def __dir__() -> list[str]:
    return sorted(__all__)
