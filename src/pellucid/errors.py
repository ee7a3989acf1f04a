"""The exception tree. A message says what was expected, what came, and what to do.

    PellucidError(ValueError)
    ├── InputError       an array or file that cannot be used as it is
    │   └── NotFiniteError   voxels that are NaN or infinite
    ├── ParameterError   a parameter, or a combination of them, that makes no sense
    ├── FrameError       geometry whose frames or units do not meet
    ├── PlanError        a run that would not fit in memory or on disk: refused before it starts
    └── OutputError      a result that could not be written; nothing half-written looks finished

    PellucidWarning(UserWarning)
    ├── RunawayWarning   an unguarded iteration left the data
    └── VoxelSizeWarning what was stated contradicts the file
"""


class PellucidError(ValueError):
    """Base of every error that Pellucid raises on purpose."""


class InputError(PellucidError):
    """An array or file that cannot be used as it is."""


class NotFiniteError(InputError):
    """Voxels that are NaN or infinite: no run of this input can be gone on with."""


class ParameterError(PellucidError):
    """A parameter, or a combination of parameters, that makes no sense."""


class FrameError(PellucidError):
    """Geometry whose frames or units do not meet."""


class PlanError(PellucidError):
    """A run that would not fit in memory or on disk; refused before it starts."""


class OutputError(PellucidError):
    """A result that could not be written."""


class PellucidWarning(UserWarning):
    """Base of every warning that Pellucid issues."""


class RunawayWarning(PellucidWarning):
    """An unguarded iteration left the data: its result is not to be believed."""


class VoxelSizeWarning(PellucidWarning):
    """A stated voxel size is used in place of another one that the file states."""
