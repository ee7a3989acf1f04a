"""What is left of a run by parts that ends early: finished parts and how to go on, or nothing at all."""

from collections.abc import Iterator
from contextlib import contextmanager

from pellucid.data.resumable_zarr import ResumableZarr
from pellucid.data.writer import remove
from pellucid.errors import PellucidError


@contextmanager
def going_on(writer: ResumableZarr, piece: str) -> Iterator[None]:
    """Write within; an error says that finished pieces are kept, where there are any.

    Parameters
    ----------
    piece : "tile" or "block", as it stands in the names of parts
    """
    try:
        with writer:
            yield
    except PellucidError as error:
        done = getattr(writer, "done", None)  # not there where the run was refused
        if done is None:
            raise
        done.take_in()  # what workers finished and could not say any more
        if not any(f" {piece} " in part for part in done):
            done.remove()
            remove(writer.partial_path)
            raise
        hint = f"Finished {piece}s are kept: put that right, and go on with --resume."
        why = str(error).replace("the output is not kept", f"the {piece} is lost")
        raise type(error)(f"{why} {hint}") from error
