"""Datasets of BigDataViewer and BigStitcher: an XML that describes views, and HDF5 or N5 beside it."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pellucid.data.source import Calibration, Source, to_micrometres
from pellucid.data.stored_volumes import Hdf5Volumes, N5Volumes
from pellucid.data.volume_set import Volumes, VolumeSet, chosen_image
from pellucid.errors import InputError

APART = ("angle", "tile", "illumination")
"""Attributes of a view setup that make views; channels are channels of one view."""


def open_bdv(path: Path, image: int | None = None) -> Source:
    """One view of a dataset, with all its channels and time points; `image` chooses among several.

    Raises
    ------
    InputError : no such XML, another image loader, several views and no choice, missing volumes, or
        volumes of another size than the XML states
    """
    root = read_bdv(path)
    sequence = root.find("SequenceDescription")
    loader = sequence.find("ImageLoader") if sequence is not None else None
    if sequence is None or loader is None:
        raise InputError(f"{path.name}: not a dataset of BigDataViewer: it names no image loader.")
    views = bdv_views(path, root)
    setups = views[chosen_image(path.name, views, image)]
    times = _times(path, sequence)
    base = path.parent / (root.findtext("BasePath") or ".").strip()
    stored, volumes = _volumes(path, base, loader, times, [setup_number(s, path) for s in setups])
    made = VolumeSet(
        path, volumes, (len(times), len(setups)), _calibration(setups, times), files=(path, stored),
        is_unsigned=True,
    )  # fmt: skip
    z, y, x = made.shape[2:]
    for setup in setups:
        stated = stated_shape(setup)
        if stated is not None and stated != (z, y, x):
            raise InputError(
                f"{path.name}: states {stated} voxels (z, y, x) for setup {setup_number(setup, path)}, and "
                f"{stored.name} holds {(z, y, x)}. One of the two is of another dataset: export it again."
            )
    return made


def read_bdv(path: Path) -> Element:
    """The root of an XML of BigDataViewer or BigStitcher; InputError for what is no XML."""
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path.name}: not XML of BigDataViewer, or truncated ({error}).") from error


def bdv_views(path: Path, root: Element) -> dict[str, list[Element]]:
    """View setups that differ in the channel alone, by a name that says what they share."""
    views: dict[str, list[Element]] = {}
    for setup in root.iterfind("SequenceDescription/ViewSetups/ViewSetup"):
        found = _attributes(setup)
        name = ", ".join(f"{key} {found[key]}" for key in APART if key in found)
        views.setdefault(name or "view", []).append(setup)
    if not views:
        raise InputError(f"{path.name}: describes no view setups. Export the dataset again.")
    return views


def named_views(path: Path) -> list[str]:
    """What sets each view of a dataset of several apart, such as "angle 1, tile 0"; else none."""
    if path.suffix.lower() not in (".xml", ".h5", ".n5"):
        return []
    described = path.with_suffix(".xml")
    if not described.is_file():
        return []
    views = bdv_views(described, read_bdv(described))
    return list(views) if len(views) > 1 else []


def views_in(path: Path) -> list[str]:
    """Each view of one specimen that a dataset of several holds, such as "dataset.xml#1"; else none.

    Angles are views, and so is every illumination of an angle, as in BigStitcher.

    Raises
    ------
    InputError : tiles, which are stitched before views are fused
    """
    views = named_views(path)
    tiles = {part for name in views for part in name.split(", ") if part.startswith("tile ")}
    if len(tiles) > 1:
        raise InputError(
            f"{path.name}: holds {len(tiles)} tiles, and tiles are not views of one place: stitch those of "
            f"each angle first (pellucid stitch), or name the views ({path.name}#0 {path.name}#1)."
        )
    return [f"{path}#{number}" for number in range(len(views))]


def setups_in(path: Path, image: int | None) -> tuple[int, ...]:
    """The ids of the setups that are the channels of view `image`, or of the only one."""
    views = bdv_views(path, read_bdv(path))
    return tuple(setup_number(s, path) for s in views[chosen_image(path.name, views, image)])


def setup_number(setup: Element, path: Path) -> int:
    """The id of a view setup."""
    return int(_said(setup, "id", path))


def stated_shape(setup: Element) -> tuple[int, int, int] | None:
    """(z, y, x) as the XML states it; None where it does not."""
    sizes = (setup.findtext("size") or "").split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        return None
    x, y, z = (int(size) for size in sizes)
    return z, y, x


def _attributes(setup: Element) -> dict[str, str]:
    return {a.tag: (a.text or "").strip() for a in setup.iterfind("attributes/*")}


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
    path: Path, base: Path, loader: Element, times: list[int], setups: list[int]
) -> tuple[Path, Volumes]:
    kind = loader.get("format", "")
    element = loader.find({"bdv.hdf5": "hdf5", "bdv.n5": "n5"}.get(kind, "none"))
    if element is None:
        raise InputError(
            f"{path.name}: its image loader is {kind!r}; bdv.hdf5 and bdv.n5 are read. "
            "Resave the dataset as HDF5 or N5 in BigStitcher."
        )
    stored = base / (element.text or "").strip()
    if not stored.exists():
        raise InputError(f"{path.name}: names {stored.name}, which is not there. Put it beside the XML.")
    keys = [(t, c) for t in range(len(times)) for c in range(len(setups))]
    if kind == "bdv.hdf5":
        names = {(t, c): f"t{times[t]:05d}/s{setups[c]:02d}/0/cells" for t, c in keys}
        return stored, Hdf5Volumes(stored, names)
    return stored, N5Volumes(
        {(t, c): stored / f"setup{setups[c]}/timepoint{times[t]}/s0" for t, c in keys}
    )


def _calibration(setups: list[Element], times: list[int]) -> Calibration:
    voxel = setups[0].find("voxelSize")
    spacing: Any = (None, None, None)
    if voxel is not None:
        sizes = (voxel.findtext("size") or "").split()
        if len(sizes) == 3:
            spacing = tuple(to_micrometres(float(s), voxel.findtext("unit")) for s in sizes[::-1])
    names = tuple((setup.findtext("name") or "").strip() for setup in setups)
    told_apart = all(names) and len(set(names)) == len(names)
    return Calibration(spacing, names if told_apart else (), time_numbers=tuple(times))


def _said(element: Element, name: str, path: Path) -> str:
    text = element.findtext(name)
    if not text:
        raise InputError(f"{path.name}: a {element.tag} without {name}. Export the dataset again.")
    return text.strip()
