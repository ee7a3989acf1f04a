"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real microscopy data; tests that need it skip where it is absent."""
    beside_the_clone = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PELLUCID_DATA", beside_the_clone))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set PELLUCID_DATA to its folder")
    return folder
