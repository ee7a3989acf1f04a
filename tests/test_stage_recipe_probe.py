"""The piece of a recording by which a recipe's time is estimated."""

import math

import numpy as np

from pellucid.data.recording import open_recording
from pellucid.stages.recipes.probe import CHUNK, piece_of


def piece(tmp_path, volume):
    np.save(tmp_path / "raw.npy", volume)
    return piece_of(open_recording(tmp_path / "raw.npy", voxel_um=(1, 1, 1)))[0]


def test_a_piece_of_a_thin_volume_holds_as_many_voxels_as_any_other(tmp_path):
    volume = np.zeros((8, 100, 3000), np.uint8)
    seen = piece(tmp_path, volume)
    assert seen.shape == (8, 100, math.prod(CHUNK) // 800)
    assert piece(tmp_path, volume[:, :50, :1000]).shape == (8, 50, 1000)


def test_the_typical_of_nine_pieces_is_taken(tmp_path):
    volume = np.zeros((48, 400, 400), np.uint8)
    volume[:, :96, :96] = 100  # one piece in nine holds all light
    assert piece(tmp_path, volume).mean() == 25
    volume[:, :, 200:] = 20  # and now three others hold more
    assert piece(tmp_path, volume).shape == CHUNK
    assert piece(tmp_path, volume).max() == 20
