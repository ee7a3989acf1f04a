"""The network that `pellucid demo` shows: its recipe, made and trained.

    python benchmarks/demo_model.py FOLDER      # writes FOLDER/field.npz and FOLDER/recipe.yaml
    pellucid train FOLDER/recipe.yaml           # makes FOLDER/model, which the package ships

It is trained on filaments and points, stops by meshes, and its verdict and cure are fitted on those and
on nuclei, membranes and clouds. Shells, which the demonstration shows it, are in none of these.
"""

import sys
from pathlib import Path

from pellucid.apps.demo_networks import psf_field
from pellucid.data.psf_field_file import write_psf_field

RECIPE = """output: {folder}/model
psf: {folder}/field.npz
modality: light-sheet
structures: [filaments, points]
held_out: [meshes]
calibrated_on: [filaments, points, nuclei, meshes, membranes, clouds]
peak_photons: 30,300
background_photons: 1,5
shape: 32,64,64
steps: 500
calibration: 20
width: 16
licence: BSD-3-Clause
"""

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_psf_field(folder / "field.npz", psf_field(), overwrite=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
