"""One way to every output: the suffix chooses the format, the checks come before the work."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pellucid.data.pixels import IntegerScale
from pellucid.data.writer import ImageDescription, ImageWriter
from pellucid.errors import OutputError, ParameterError

OME_ZARR_VERSIONS = ("0.4", "0.5")


def create_output(
    path: str | Path,
    image: ImageDescription,
    *,
    attributes: Mapping[str, Any] | None = None,
    scale: IntegerScale = IntegerScale(),
    ome_zarr_version: str = "0.5",
    overwrite: bool = False,
) -> ImageWriter:
    """A writer for `path`, checked and not yet begun: `with create_output(...) as out:`.

    Parameters
    ----------
    path : `.zarr` is OME-Zarr, `.ome.tif` OME-TIFF (BigTIFF above 4 GB), `.tif` ImageJ TIFF
    attributes : JSON kept inside the file (configuration)
    scale : how floats become the integers of `image.dtype`
    ome_zarr_version : "0.5", or "0.4" for older Fiji and BigStitcher

    Raises
    ------
    OutputError : unknown suffix, existing file, unwritable folder, a type the format lacks
    PlanError : too little free disk space, or more than 4 GB for ImageJ TIFF

    Examples
    --------
    >>> image = ImageDescription((1, 1, 40, 512, 512), voxel_um=(0.3, 0.1, 0.1))
    >>> with create_output("sharp.ome.zarr", image) as out:       # doctest: +SKIP
    ...     out.write(0, 0, volume)
    """
    path = Path(path).expanduser()
    name = path.name.lower()
    if ome_zarr_version not in OME_ZARR_VERSIONS:
        raise ParameterError(
            f"OME-Zarr: expected version {' or '.join(OME_ZARR_VERSIONS)}, "
            f"got {ome_zarr_version!r}."
        )
    # Each format is imported when it is asked for: tensorstore alone costs half a second.
    if name.endswith(".zarr"):
        from pellucid.data.ome_zarr_writer import OmeZarrWriter

        return OmeZarrWriter(
            path, image, version="0.4" if ome_zarr_version == "0.4" else "0.5",
            attributes=attributes, scale=scale, overwrite=overwrite,
        )  # fmt: skip
    if name.endswith((".tif", ".tiff")):
        from pellucid.data.tiff_writer import TiffWriter

        return TiffWriter(
            path, image, "ome" if name.endswith((".ome.tif", ".ome.tiff")) else "imagej",
            attributes=attributes, scale=scale, overwrite=overwrite,
        )  # fmt: skip
    raise OutputError(
        f"{path.name}: the suffix chooses the format, and {path.suffix!r} is none. "
        "Use .ome.zarr, .ome.tif or .tif."
    )


def check_not_input(output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError where `output` is one of the files that are read: it would replace them."""
    if output.expanduser().resolve() in {path.expanduser().resolve() for path in inputs}:
        raise OutputError(f"{output}: is an input. Write to another name.")


def stem(path: Path) -> str:
    """The name of an image without the suffixes that say its format."""
    name = path.name
    for suffix in (".zarr", ".tiff", ".tif", ".npy", ".npz", ".btf", ".tf8", ".xml", ".h5", ".n5", ".ims"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name.removesuffix(".ome") or path.name
