"""Commands in processes of their own, to be killed; what they have listed, and what they have written."""

import subprocess
import sys
from pathlib import Path

COMMAND = "import sys; from pellucid.apps.cli import main; sys.exit(main())"
TILES = ("--tile", "12,128,128", "--iterations", "15", "--method", "matched")


def started(output, *more, before=""):
    """`pellucid deconvolve` of raw.ome.zarr by tiles, running; `before` is Python that comes first."""
    return subprocess.Popen(
        [sys.executable, "-c", before + COMMAND, "deconvolve", "raw.ome.zarr", "--psf", "psf.tif",
         "-o", output, *TILES, *more],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def lists(output):
    """Lists, beside the manifest of an output, of workers that have finished a tile."""
    every = sorted(Path().glob(f"{output}.parts.jsonl.*.list.jsonl"))
    return [path for path in every if finished_tiles(path)]


def finished_tiles(path):
    """Tiles that a manifest or list names; none where it is gone."""
    try:
        return path.read_bytes().count(b" tile ")
    except FileNotFoundError:
        return 0


def worker_of(path):
    """The process that keeps a list."""
    return int(path.name.split("-")[-2])


def pixels(name):
    """The bytes of every file of chunks."""
    files = sorted(f for f in Path(name).rglob("*") if f.is_file() and "c" in f.parts)
    return {str(f.relative_to(name)): f.read_bytes() for f in files}
