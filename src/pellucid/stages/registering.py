"""Registration of series: the transforms of all views at all time points."""

from collections.abc import Sequence

from pellucid.core.transform_series import SeriesRegistration
from pellucid.stages.events import OnEvent, ignore
from pellucid.stages.parameters import RegisterParameters
from pellucid.stages.view_series import ViewSeries


def register_series(
    views: Sequence[ViewSeries],
    parameters: RegisterParameters,
    on_event: OnEvent = ignore,
    *,
    done: SeriesRegistration | None = None,
) -> SeriesRegistration:
    """Register every view to the first at every time point; one bad time point stops nothing.

    Parameters
    ----------
    views : opened by `open_views`
    done : results of an interrupted run, taken over
    """
    raise NotImplementedError
