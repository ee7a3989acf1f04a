"""What a TIFF file says of its voxel size, channels and time step, in the dialects in use."""

import json
from typing import Any
from xml.etree import ElementTree

import tifffile

from pellucid.data.source import Calibration, to_micrometres, to_seconds

# ResolutionUnit as TIFF counts it. Inch and centimetre are left out: there they are the printing
# resolution (72 dpi) far more often than a voxel size, and a voxel size is never guessed.
RESOLUTION_UNITS = {4: "mm", 5: "um"}


def tiff_calibration(file: tifffile.TiffFile, image: int) -> Calibration:
    """Calibration of image number `image`, from OME-XML, ImageJ, Micro-Manager or plain tags."""
    if file.is_ome and file.ome_metadata:
        return ome_calibration(file.ome_metadata, image)
    if file.imagej_metadata is not None:
        return _imagej_calibration(file)
    if file.is_micromanager and file.micromanager_metadata:
        return micromanager_calibration(file.micromanager_metadata)
    unit = RESOLUTION_UNITS.get(int(_tag(file, "ResolutionUnit") or 0))
    return Calibration(spacing_um=(None, *_pixel_um(file, unit)))


def ome_calibration(xml: str, image: int) -> Calibration:
    """Calibration of the `image`-th Image of an OME-XML text."""
    root = ElementTree.fromstring(xml)
    pixels = [p for p in root.iter() if p.tag.rpartition("}")[2] == "Pixels"]
    if image >= len(pixels):
        return Calibration()
    said = pixels[image].attrib
    z, y, x = (
        # OME-XML 2016-06: the unit of a physical size defaults to micrometre, of time to second.
        to_micrometres(
            _number(said.get(f"PhysicalSize{axis}")), said.get(f"PhysicalSize{axis}Unit", "um")
        )
        for axis in "ZYX"
    )
    channels = [c for c in pixels[image] if c.tag.rpartition("}")[2] == "Channel"]
    step = to_seconds(_number(said.get("TimeIncrement")), said.get("TimeIncrementUnit", "s"))
    return Calibration((z, y, x), _names([c.get("Name") for c in channels]), step)


def promised_ome_planes(xml: str, image: int) -> int:
    """Number of planes that the `image`-th Image says it has."""
    root = ElementTree.fromstring(xml)
    pixels = [p for p in root.iter() if p.tag.rpartition("}")[2] == "Pixels"]
    if image >= len(pixels):
        return 0
    z, c, t = (int(pixels[image].get(f"Size{axis}", 1)) for axis in "ZCT")
    return z * c * t


def _imagej_calibration(file: tifffile.TiffFile) -> Calibration:
    said: dict[str, Any] = file.imagej_metadata or {}
    unit = str(said.get("unit", ""))
    spacing = _number(said.get("spacing"))
    # Fiji marks a stack that runs downwards by a negative spacing.
    z = to_micrometres(None if spacing is None else abs(spacing), said.get("zunit", unit))
    y, x = _pixel_um(file, unit)
    # A y unit of its own is how Fiji marks pixels that are not isotropic in kind.
    if "yunit" in said:
        y = to_micrometres(_pixels_per_unit_inverse(file, "YResolution"), str(said["yunit"]))
    interval = to_seconds(_number(said.get("finterval")), said.get("tunit", "s"))
    return Calibration((z, y, x), _label_names(said), interval)


def micromanager_calibration(said: dict[str, Any]) -> Calibration:
    """Calibration from the Summary of Micro-Manager's own metadata (1.4 and 2)."""
    summary = said.get("Summary") or {}
    pixel = to_micrometres(_number(summary.get("PixelSize_um")), "um")
    step = to_micrometres(_number(summary.get("z-step_um")), "um")
    interval = to_seconds(_number(summary.get("Interval_ms")), "ms")
    names = summary.get("ChNames") or []
    if isinstance(names, str):  # Micro-Manager 1.4 stores a JSON text inside the JSON
        names = json.loads(names)
    return Calibration((step, pixel, pixel), _names(names), interval)


def _pixel_um(file: tifffile.TiffFile, unit: str | None) -> tuple[float | None, float | None]:
    y, x = (_pixels_per_unit_inverse(file, f"{axis}Resolution") for axis in "YX")
    return to_micrometres(y, unit), to_micrometres(x, unit)


def _pixels_per_unit_inverse(file: tifffile.TiffFile, name: str) -> float | None:
    resolution = _tag(file, name)
    if not resolution or 0 in resolution:
        return None
    return float(resolution[1] / resolution[0])


def _label_names(said: dict[str, Any]) -> tuple[str, ...]:
    """Channel names where every slice label of a channel is the same, as we write them."""
    channels = int(said.get("channels", 1))
    labels: list[str | None] | str = said.get("Labels") or []
    if isinstance(labels, str):  # tifffile returns the label of a single slice bare
        labels = [labels]
    if len(labels) < channels or len(labels) % channels:
        return ()
    names = labels[:channels]
    if any(label != names[i % channels] for i, label in enumerate(labels)):
        return ()
    return _names(names)


def _names(names: list[str | None]) -> tuple[str, ...]:
    return tuple(name for name in names if name) if all(names) else ()


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def _tag(file: tifffile.TiffFile, name: str) -> Any:
    return file.pages.first.tags.valueof(name)
