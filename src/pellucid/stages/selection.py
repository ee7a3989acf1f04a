"""Which time points and channels of a recording are taken."""

import numpy as np

from pellucid.data.recording import Recording
from pellucid.errors import ParameterError


def chosen(selection: str | None, size: int, axis: str, recording: Recording) -> tuple[int, ...]:
    """The indices that `selection` ("2", "0:3", "0,2", names of channels) takes out of `size`."""
    if selection is None:
        return tuple(range(size))
    names = recording.channels if axis == "channel" else ()
    taken: list[int] = []
    for part in selection.split(","):
        text = part.strip()
        pieces = text.split(":")
        if text in names:
            taken.append(names.index(text))
        elif len(pieces) in (2, 3) and all(p.strip("-").isdigit() or not p for p in pieces):
            taken += range(size)[slice(*(int(p) if p else None for p in pieces))]
        elif text.isdigit() and int(text) < size:
            taken.append(int(text))
        else:
            known = f" or a name of {', '.join(names)}" if names else ""
            raise ParameterError(
                f"{axis}: {text!r} is not in {recording.path.name}; "
                f"expected 0 to {size - 1}, a range such as 0:{size}{known}."
            )
    if not taken or len(set(taken)) != len(taken):
        raise ParameterError(
            f"{axis}: {selection!r} takes {'nothing' if not taken else 'something twice'} of "
            f"0..{size - 1} in {recording.path.name}."
        )
    return tuple(taken)


def time_step_s(recording: Recording, times: tuple[int, ...]) -> float | None:
    """Seconds between the time points taken; None where they are not evenly spaced."""
    steps = set(np.diff(times).tolist())
    step = recording.time_step_s
    return None if step is None or len(steps) > 1 else step * max(steps, default=1)
