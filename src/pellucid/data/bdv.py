"""Datasets of BigDataViewer and BigStitcher: an XML that describes views, and HDF5 or N5 beside it."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pellucid.data.source import Calibration, Source, to_micrometres
from pellucid.data.volume_set import Volumes, VolumeSet, chosen_image
from pellucid.errors import InputError

APART = ("angle", "tile", "illumination")
"""Attributes of a view setup that make views; channels are channels of one view."""


def open_bdv(path: Path, image: int | None = None) -> Source:
    """One view of a dataset, with all its channels and time points; `image` chooses among several.

    Raises
    ------
    InputError : no such XML, another image loader, several views and no choice, missing volumes
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path.name}: not XML of BigDataViewer, or truncated ({error}).") from error
    sequence = root.find("SequenceDescription")
    loader = sequence.find("ImageLoader") if sequence is not None else None
    if sequence is None or loader is None:
        raise InputError(f"{path.name}: not a dataset of BigDataViewer: it names no image loader.")
    views = _views(path, sequence)
    setups = views[chosen_image(path.name, views, image)]
    times = _times(path, sequence)
    stored, volumes = _volumes(path, loader, times, [int(_said(s, "id", path)) for s in setups])
    return VolumeSet(
        path, volumes, (len(times), len(setups)), _calibration(setups), files=(path, stored),
        is_unsigned=True,
    )  # fmt: skip


def _views(path: Path, sequence: Element) -> dict[str, list[Element]]:
    """View setups that differ in the channel alone, by a name that says what they share."""
    views: dict[str, list[Element]] = {}
    for setup in sequence.iterfind("ViewSetups/ViewSetup"):
        found = {a.tag: (a.text or "").strip() for a in setup.iterfind("attributes/*")}
        name = ", ".join(f"{key} {found[key]}" for key in APART if key in found)
        views.setdefault(name or "view", []).append(setup)
    if not views:
        raise InputError(f"{path.name}: describes no view setups. Export the dataset again.")
    return views


def _times(path: Path, sequence: Element) -> list[int]:
    points = sequence.find("Timepoints")
    kind = "" if points is None else points.get("type", "")
    try:
        assert points is not None
        if kind == "range":
            return list(range(int(_said(points, "first", path)), int(_said(points, "last", path)) + 1))
        if kind == "pattern":
            return _pattern(_said(points, "integerpattern", path))
        if kind == "list":
            return [int(_said(p, "id", path)) for p in points.iter("Timepoint")]
    except (AssertionError, ValueError) as error:
        raise InputError(f"{path.name}: its time points are damaged ({error}).") from error
    raise InputError(f"{path.name}: time points of type {kind!r} are not understood.")


def _pattern(text: str) -> list[int]:
    """Numbers, ranges and ranges with steps, as "0-4, 7, 10-20:5"."""
    times: list[int] = []
    for part in text.replace(" ", "").split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        times += range(int(first), int(last or first) + 1, int(step or 1))
    return times


def _volumes(
    path: Path, loader: Element, times: list[int], setups: list[int]
) -> tuple[Path, Volumes]:
    kind = loader.get("format", "")
    element = loader.find({"bdv.hdf5": "hdf5", "bdv.n5": "n5"}.get(kind, "none"))
    if element is None:
        raise InputError(
            f"{path.name}: its image loader is {kind!r}; bdv.hdf5 and bdv.n5 are read. "
            "Resave the dataset as HDF5 or N5 in BigStitcher."
        )
    stored = path.parent / (element.text or "").strip()
    if not stored.exists():
        raise InputError(f"{path.name}: names {stored.name}, which is not there. Put it beside the XML.")
    keys = [(t, c) for t in range(len(times)) for c in range(len(setups))]
    if kind == "bdv.hdf5":
        from pellucid.data.hdf5 import Hdf5Volumes

        names = {(t, c): f"t{times[t]:05d}/s{setups[c]:02d}/0/cells" for t, c in keys}
        return stored, Hdf5Volumes(stored, names)
    from pellucid.data.n5 import N5Volumes

    return stored, N5Volumes(
        {(t, c): stored / f"setup{setups[c]}/timepoint{times[t]}/s0" for t, c in keys}
    )


def _calibration(setups: list[Element]) -> Calibration:
    voxel = setups[0].find("voxelSize")
    spacing: Any = (None, None, None)
    if voxel is not None:
        sizes = (voxel.findtext("size") or "").split()
        if len(sizes) == 3:
            spacing = tuple(to_micrometres(float(s), voxel.findtext("unit")) for s in sizes[::-1])
    names = tuple((setup.findtext("name") or "").strip() for setup in setups)
    return Calibration(spacing, names if all(names) and len(set(names)) == len(names) else ())


def _said(element: Element, name: str, path: Path) -> str:
    text = element.findtext(name)
    if not text:
        raise InputError(f"{path.name}: a {element.tag} without {name}. Export the dataset again.")
    return text.strip()
