"""Transforms in the XML of BigStitcher and BigDataViewer: views of a series, voxels to micrometres.

A ViewRegistration lists transforms of which the last is applied first; points are x, y, z, in voxels
of the view to begin with. Setups are numbered view by view, channels within a view.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from pellucid.core.geometry import Affine, Grid
from pellucid.core.transform_series import WORLD, SeriesRegistration, ViewTransform
from pellucid.data.transform_exchange import to_xyz
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.errors import InputError, PellucidError


def write_bigstitcher(
    path: Path, series: SeriesRegistration, grids: Sequence[Grid], channels: Sequence[str]
) -> None:
    """Write the transforms of all views, for each channel a setup, with sizes and voxel sizes.

    The image loader is left to BigStitcher: the file describes views, and holds no pixels.
    """
    root = Element("SpimData", version="0.2")
    SubElement(root, "BasePath", type="relative").text = "."
    sequence = SubElement(root, "SequenceDescription")
    setups = SubElement(sequence, "ViewSetups")
    for view, grid in enumerate(grids):
        for c, name in enumerate(channels):
            setup = SubElement(setups, "ViewSetup")
            SubElement(setup, "id").text = str(view * len(channels) + c)
            SubElement(setup, "name").text = f"view {view} {name}"
            SubElement(setup, "size").text = " ".join(map(str, grid.shape[::-1]))
            voxel = SubElement(setup, "voxelSize")
            SubElement(voxel, "unit").text = "µm"
            SubElement(voxel, "size").text = " ".join(map(repr, grid.spacing_um[::-1]))
            attributes = SubElement(setup, "attributes")
            for attribute, number in (("illumination", 0), ("channel", c), ("tile", 0), ("angle", view)):
                SubElement(attributes, attribute).text = str(number)
    points = SubElement(sequence, "Timepoints", type="pattern")
    SubElement(points, "integerpattern").text = ",".join(map(str, series.times))
    registrations = SubElement(root, "ViewRegistrations")
    for time in series.times:
        for view, grid in enumerate(grids):
            to_world = series.world_to_view(time, view).inverse()
            for c in range(len(channels)):
                setup_id = str(view * len(channels) + c)
                entry = SubElement(
                    registrations, "ViewRegistration", timepoint=str(time), setup=setup_id
                )
                _add(entry, "Pellucid registration", to_world.matrix)
                _add(entry, "calibration", grid.index_to_um.matrix)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    with plain_errors(path):
        write_atomically(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def read_bigstitcher(path: Path) -> dict[tuple[int, int], Affine]:
    """Voxel indices of each (time point, setup) to the world, ZYX; InputError for other files."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path.name}: no XML of BigStitcher, or truncated ({error}).") from error
    found: dict[tuple[int, int], Affine] = {}
    for entry in root.iter("ViewRegistration"):
        try:
            matrix = np.eye(4)
            for transform in entry.iter("affine"):
                rows = np.eye(4)
                rows[:3] = np.array((transform.text or "").split(), dtype=float).reshape(3, 4)
                matrix = matrix @ rows
            key = (int(entry.attrib["timepoint"]), int(entry.attrib["setup"]))
            found[key] = Affine(to_xyz(matrix), "index", WORLD)
        except (KeyError, ValueError, PellucidError) as error:
            raise InputError(f"{path.name}: a view registration is damaged ({error}).") from error
    if not found:
        raise InputError(f"{path.name}: holds no view registrations.")
    return found


def read_bigstitcher_series(path: Path, grids: Sequence[Grid]) -> SeriesRegistration:
    """The transforms between the views of a series; whatever unit the world has, it cancels.

    Views are the setups of different angle, illumination or tile in the order of their numbers;
    the first channel of each counts.

    Raises
    ------
    InputError : other numbers of views, or a time point without the first view
    """
    places = read_bigstitcher(path)
    setups = _views(path) or sorted({setup for _, setup in places})
    if len(setups) != len(grids):
        raise InputError(f"{path.name}: transforms of {len(setups)} views for {len(grids)}.")
    times = tuple(sorted({time for time, _ in places}))
    transforms = []
    for time in times:
        if any((time, setup) not in places for setup in setups):
            raise InputError(f"{path.name}: time point {time} lacks the registration of a view.")
        for view, setup in enumerate(setups):
            to_first = places[time, setups[0]].inverse() @ places[time, setup]
            between = grids[0].index_to_um.matrix @ to_first.matrix @ grids[view].um_to_index.matrix
            placed = Affine(between, f"view {view}", WORLD).inverse()
            transforms.append(ViewTransform(time, view, placed, "given"))
    return SeriesRegistration(times, len(grids), tuple(transforms))


def _views(path: Path) -> list[int]:
    """The first setup of each angle, illumination and tile; none where these are not stated."""
    first: dict[tuple[str | None, ...], int] = {}
    for setup in ElementTree.parse(path).getroot().iter("ViewSetup"):
        found = setup.find("attributes")
        if found is None:
            return []
        place = tuple(found.findtext(name) for name in ("angle", "illumination", "tile"))
        number = int(setup.findtext("id") or 0)
        first[place] = min(number, first.get(place, number))
    return sorted(first.values())


def _add(entry: Element, name: str, matrix: np.ndarray) -> None:
    transform = SubElement(entry, "ViewTransform", type="affine")
    SubElement(transform, "Name").text = name
    rows = to_xyz(matrix)[:3].ravel().tolist()
    SubElement(transform, "affine").text = " ".join(map(repr, rows))
