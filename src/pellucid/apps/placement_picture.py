"""A picture of a placement: where the tiles are, and how far each link disagrees."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pellucid.core.placement import Placement
from pellucid.data.output import stem
from pellucid.data.writer import plain_errors
from pellucid.stages.stitching.plan import StitchPlan
from pellucid.stages.stitching.stitching import StitchOutcome

LEAST_SCALE_PX = 0.1
INK, STAGE, BAD = "#1d2733", "#9aa7b0", "#c0392b"


def drawn_placement(plan: StitchPlan, outcome: StitchOutcome, output: Path) -> list[Path]:
    """The picture of a stitching beside its output, where it was asked for."""
    if not plan.parameters.picture:
        return []
    assert outcome.placement is not None
    path = output.with_name(f"{stem(output)}_placement.png")
    placement_picture(outcome.placement, plan.tiles.nominal_px, plan.tiles.shapes, path)
    return [path]


def placement_picture(
    placed: Placement,
    nominal_px: npt.NDArray[np.float64],
    shapes: list[tuple[int, int, int]],
    path: Path,
) -> None:
    """Write a .png: tiles as the stage says (dotted) and as found, links by their residual."""
    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    plan, sizes = figure.subplots(1, 2, width_ratios=(2.4, 1))
    positions = placed.positions_px
    for number, (stage, found, shape) in enumerate(
        zip(nominal_px, positions, shapes, strict=True)
    ):
        for (_, y, x), colour, style in ((stage, STAGE, ":"), (found, INK, "-")):
            plan.add_patch(
                Rectangle((x, y), shape[2], shape[1], fill=False, edgecolor=colour, ls=style, lw=0.8)
            )
        plan.text(
            found[2] + shape[2] / 2, found[1] + shape[1] / 2, str(number), color=INK, ha="center",
            va="center", fontsize=8, bbox={"color": "white", "pad": 1},
        )  # fmt: skip
    middles = positions[:, 1:] + np.array(shapes)[:, 1:] / 2
    ends = np.array([(k.first, k.second) for k in placed.links], int).reshape(-1, 2)
    lines = middles[ends][:, :, ::-1] if len(ends) else np.zeros((0, 2, 2))
    kept = placed.kept.astype(bool)
    good = LineCollection(list(lines[kept]), cmap="viridis", lw=2.5, zorder=1)
    # a scale that does not blow up residuals of a hundredth of a voxel
    largest = max(float(placed.residuals_px[kept].max(initial=0.0)), LEAST_SCALE_PX)
    good.set_array(placed.residuals_px[kept])
    good.set_clim(0.0, largest)
    plan.add_collection(good)
    plan.add_collection(LineCollection(list(lines[~kept]), colors=BAD, ls="--", lw=1.2, zorder=1))
    plan.set_aspect("equal")
    plan.autoscale_view()
    plan.invert_yaxis()
    plan.set_xlabel("x (px)", color=INK)
    plan.set_ylabel("y (px)", color=INK)
    plan.set_title("stage dotted, found solid; links not used red and dashed", fontsize=9)
    if kept.any():
        figure.colorbar(good, ax=plan, label="residual of the link (px)", shrink=0.7)
        sizes.hist(placed.residuals_px[kept], bins=20, range=(0.0, largest), color=INK)
    sizes.set_xlabel("residual of the link (px)", color=INK)
    sizes.set_ylabel("links", color=INK)
    sizes.set_title(f"{int(kept.sum())} of {len(kept)} links used", fontsize=9)
    with plain_errors(path):
        figure.savefig(path, dpi=120)
