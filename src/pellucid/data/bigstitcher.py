"""Transforms in the XML of BigStitcher and BigDataViewer: views of a series, voxels to micrometres.

A ViewRegistration lists transforms of which the last is applied first; points are x, y, z, in voxels
of the view to begin with. Setups are numbered view by view, channels within a view.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from pellucid.core.geometry import Affine, Grid
from pellucid.core.transform_series import WORLD, SeriesRegistration, ViewTransform
from pellucid.data.bdv import bdv_views, read_bdv, setup_number, stated_shape
from pellucid.data.transform_exchange import to_xyz
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.errors import InputError, PellucidError

NAME = "Pellucid registration"
"""Of the transforms that are written."""


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
                _add(entry, NAME, to_world.matrix)
                _add(entry, "calibration", grid.index_to_um.matrix)
    _write(path, root)


def write_into_dataset(
    path: Path,
    dataset: Path,
    series: SeriesRegistration,
    grids: Sequence[Grid],
    setups: Sequence[Sequence[int]],
) -> None:
    """Write a copy of a dataset's XML in which its views lie to each other as `series` has them.

    As BigStitcher does, one transform goes before those that are there; the first view, other views and
    everything else stay. Transforms that are not believed are left out.

    Parameters
    ----------
    setups : of each view, one for each channel; all channels of a view are moved alike
    """
    root, places = read_bdv(dataset), read_bigstitcher(dataset)
    entries = {_key(dataset, entry): entry for entry in root.iter("ViewRegistration")}
    for one in series.transforms:
        if one.view == 0 or not one.believed:
            continue
        first, own = (_place(dataset, places, one.time, setups[v][0]) for v in (0, one.view))
        to_first = one.world_to_view.inverse().matrix @ grids[one.view].index_to_um.matrix
        moved = first.matrix @ grids[0].um_to_index.matrix @ to_first
        for setup in setups[one.view]:
            _place(dataset, places, one.time, setup)
            _add(entries[one.time, setup], NAME, moved @ own.inverse().matrix, before=True)
    base = root.find("BasePath")
    base = SubElement(root, "BasePath") if base is None else base
    pixels = dataset.parent.resolve() / (base.text or ".").strip()
    base.set("type", "relative")
    base.text = os.path.relpath(pixels, path.parent.resolve())
    _write(path, root)


def read_bigstitcher(path: Path) -> dict[tuple[int, int], Affine]:
    """Voxel indices of each (time point, setup) to the world, ZYX; InputError for other files."""
    found: dict[tuple[int, int], Affine] = {}
    for entry in read_bdv(path).iter("ViewRegistration"):
        try:
            matrix = np.eye(4)
            for transform in entry.iter("ViewTransform"):
                rows = np.eye(4)
                numbers = (transform.findtext("affine") or "").split()
                rows[:3] = np.array(numbers, dtype=float).reshape(3, 4)
                matrix = matrix @ rows
            found[_key(path, entry)] = Affine(to_xyz(matrix), "index", WORLD)
        except (ValueError, PellucidError) as error:
            raise InputError(f"{path.name}: a view registration is damaged ({error}).") from error
    if not found:
        raise InputError(f"{path.name}: holds no view registrations.")
    return found


def read_bigstitcher_series(
    path: Path, grids: Sequence[Grid], setups: Sequence[int] | None = None
) -> SeriesRegistration:
    """The transforms between the views of a series; whatever unit the world has, it cancels.

    Parameters
    ----------
    setups : one of each view; else the views are those of the file in its order, and the first channel
        of each counts

    Raises
    ------
    InputError : other numbers or sizes of views, views that were never registered, or a time point
        that lacks a view
    """
    root, places = read_bdv(path), read_bigstitcher(path)
    described = {setup_number(s, path): s for s in root.iter("ViewSetup")}
    if setups is None:
        each = bdv_views(path, root).values() if described else ()
        setups = [setup_number(v[0], path) for v in each] or sorted({s for _, s in places})
    if len(setups) != len(grids):
        raise InputError(f"{path.name}: transforms of {len(setups)} views, and there are {len(grids)}.")
    for setup, grid in zip(setups, grids, strict=True):
        stated = stated_shape(described[setup]) if setup in described else None
        if stated not in (None, grid.shape):
            raise InputError(
                f"{path.name}: transforms of setup {setup} with {stated} voxels, and {grid.frame} has "
                f"{grid.shape}. Register these views."
            )
    times = tuple(sorted({time for time, _ in places}))
    used = [_place(path, places, time, setup) for time in times for setup in setups]
    if all(np.array_equal(place.matrix, np.diag(np.diag(place.matrix))) for place in used):
        raise InputError(
            f"{path.name}: its views have calibrations alone, and were not registered. State how they are "
            "turned, such as --angles 0,90."
        )
    transforms = []
    for time in times:
        first = places[time, setups[0]].inverse()
        for view, setup in enumerate(setups):
            to_first = first @ places[time, setup]
            between = grids[0].index_to_um.matrix @ to_first.matrix @ grids[view].um_to_index.matrix
            placed = Affine(between, f"view {view}", WORLD).inverse()
            transforms.append(ViewTransform(time, view, placed, "given" if view else "first"))
    return SeriesRegistration(times, len(grids), tuple(transforms))


def _key(path: Path, entry: Element) -> tuple[int, int]:
    try:
        return int(entry.attrib["timepoint"]), int(entry.attrib["setup"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path.name}: a view registration is damaged ({error}).") from error


def _place(path: Path, places: Mapping[tuple[int, int], Affine], time: int, setup: int) -> Affine:
    if (time, setup) not in places:
        raise InputError(f"{path.name}: time point {time} lacks the registration of setup {setup}.")
    return places[time, setup]


def _write(path: Path, root: Element) -> None:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    with plain_errors(path):
        write_atomically(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def _add(entry: Element, name: str, matrix: np.ndarray, *, before: bool = False) -> None:
    transform = Element("ViewTransform", type="affine")
    SubElement(transform, "Name").text = name
    rows = to_xyz(matrix)[:3].ravel().tolist()
    SubElement(transform, "affine").text = " ".join(map(repr, rows))
    entry.insert(0 if before else len(entry), transform)
