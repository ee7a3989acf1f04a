"""Training of a network from a recipe: checked first, resumed where it was interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import as_volume, image_shape, problem_of, usable_psf
from pellucid.core.noise import estimate_background, estimate_noise
from pellucid.core.operators import Blur
from pellucid.core.problem import Problem
from pellucid.core.psf import Psf
from pellucid.data.model_files import read_tensors, write_model, write_tensors
from pellucid.data.recording import open_recording
from pellucid.data.writer import check_output_path
from pellucid.errors import InputError, ParameterError
from pellucid.networks.model import Architecture, RestorationNet, count_parameters
from pellucid.networks.polish import Estimator, Polished
from pellucid.networks.restorer import Network
from pellucid.networks.structures import Light, simulate
from pellucid.networks.training import (
    Pair,
    Pairs,
    RecordedPairs,
    Schedule,
    SimulatedPairs,
    Trainer,
    held_out_pairs,
    window_of,
)
from pellucid.networks.trust import Trust, fit, gather, wrong_regions
from pellucid.stages.network_parameters import TrainParameters
from pellucid.stages.psf_choice import prepared_psf
from pellucid.stages.resources import resolve_device

OnLook = Callable[[Trainer], None]


def train(parameters: TrainParameters, on_look: OnLook = lambda trainer: None) -> Path:
    """Train by `parameters` and write the model; an interrupted run goes on from its checkpoint."""
    check_output_path(parameters.output, parameters.overwrite)
    assert parameters.shape is not None
    assert parameters.patch is not None
    spacing = _spacing(parameters)
    psf = usable_psf(prepared_psf(parameters.psf, spacing), parameters.shape)
    blur = Blur(torch.from_numpy(psf.values.astype(np.float32)), parameters.shape)
    light = Light(parameters.peak_photons, parameters.background_photons)
    simulated = SimulatedPairs((blur,), parameters.structures, light, parameters.seed)
    held_out: tuple[Pair, ...] = held_out_pairs(simulated, parameters.held_out, 6)
    pairs: Pairs = simulated
    if parameters.source != "simulated":
        pairs = _recorded(parameters, psf)
    architecture = Architecture(volumetric=parameters.shape[0] > 1, width=parameters.width)
    net = RestorationNet(architecture, parameters.seed)
    schedule = Schedule(
        parameters.steps, parameters.batch, parameters.reuse, parameters.patch, parameters.learning_rate,
        parameters.validate_every, parameters.patience, parameters.seed,
    )  # fmt: skip
    trainer = Trainer(net, pairs, held_out, schedule, resolve_device(parameters.device))
    checkpoint = checkpoint_path(parameters.output)
    recipe = parameters.plain()
    if checkpoint.is_file():
        tensors, values = read_tensors(checkpoint)
        if {**values.get("recipe", {}), "overwrite": 0} != {**recipe, "overwrite": 0}:
            raise ParameterError(
                f"{checkpoint.name}: begun with another recipe. Finish it with that one, delete it, "
                "or choose another output."
            )
        trainer.load(tensors, values["training"])

    def look(trainer: Trainer) -> None:
        tensors, values = trainer.state()
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(checkpoint, tensors, {"recipe": recipe, "training": values})
        on_look(trainer)

    trainer.run(on_look=look)
    net.load_state_dict(trainer.best)
    trust = calibrated(Polished(Network(net.cpu().eval())), parameters, blur, light)
    card = {
        "network": architecture.as_dict(), "parameters": count_parameters(net), "operator": "blur",
        "voxel_um": spacing, "modality": parameters.modality, "recipe": recipe,
        "structures": parameters.structures, "peak_photons": parameters.peak_photons,
        "background_photons": parameters.background_photons, "licence": parameters.licence,
        "metrics": {"held_out_nrmse": min(row["held_out"] for row in trainer.curve)},
        "curve": trainer.curve, "trust": None if trust is None else vars(trust),
    }  # fmt: skip
    weights = {f"net.{k}": v for k, v in trainer.best.items()}
    weights["psf"] = torch.from_numpy(psf.values.astype(np.float32))
    model = write_model(parameters.output, weights, card, overwrite=parameters.overwrite)
    checkpoint.unlink(missing_ok=True)
    return model


def checkpoint_path(output: Path) -> Path:
    """Where the state of a training is kept until its model is written."""
    return output.with_name(output.name + ".checkpoint")


def calibrated(
    network: Estimator, parameters: TrainParameters, blur: Blur, light: Light
) -> Trust | None:
    """The verdict, fitted on held-out structures and on those trained on; None if no region is wrong."""
    kinds = (*parameters.held_out, *parameters.structures)
    evidence, wrong, familiar = [], [], []
    for i in range(parameters.calibration):
        kind = kinds[i % len(kinds)]
        example = simulate((blur,), kind, parameters.seed + 2_000_003 + i, light)
        x = network.estimate(example.problem)
        evidence.append(gather(example.problem, network, x))
        floor = max(example.problem.observations[0].background, 1.0) ** 0.5
        wrong.append(wrong_regions(x, example.truth, window_of(example.problem), floor))
        if kind in parameters.structures:
            familiar.append(evidence[-1])
    try:
        return fit(evidence, wrong, familiar or evidence)
    except InputError:
        return None


def _spacing(parameters: TrainParameters) -> tuple[float, float, float]:
    own = open_recording(parameters.psf).voxel_um
    spacing = parameters.voxel_um or own
    if spacing is None:
        raise ParameterError("voxel_um: neither the recipe nor the PSF states one. Give it.")
    if own is not None and any(abs(a / b - 1) > 0.02 for a, b in zip(own, spacing, strict=True)):
        raise InputError(
            f"{parameters.psf.name}: voxels of {own} um, and the recipe's are {spacing} um. Give a "
            "PSF on the voxels of the images."
        )
    return spacing


def _recorded(parameters: TrainParameters, psf: Psf) -> RecordedPairs:
    paths, truths = parameters.recordings, parameters.truths
    if not paths or (parameters.source == "pairs" and len(truths) != len(paths)):
        raise InputError(
            f"recordings: {len(paths)} and {len(truths)} truths for source {parameters.source!r}. "
            "Give recordings, and for pairs a truth for each in the same order."
        )
    problems, answers = [], []
    for i, path in enumerate(paths):
        recording = open_recording(path, voxel_um=None)
        check_spacing(recording.voxel_um, _spacing(parameters), path.name)
        image = as_volume(recording.read())
        if float(image.max()) <= float(image.min()):
            raise InputError(f"{path.name}: a constant image teaches nothing. Leave it out.")
        problem, gain = photon_problem(image, psf)
        problems.append(problem)
        if parameters.source == "teacher":
            answers.append(Accelerated(seed=parameters.seed)(problem).image)
        else:
            answers.append(as_volume(open_recording(truths[i]).read()) / gain)
    return RecordedPairs(tuple(problems), tuple(answers), parameters.seed)


def photon_problem(image: Tensor, psf: Psf) -> tuple[Problem, float]:
    """The problem of an image of counts, its noise and background measured, and its gain."""
    counts = image.cpu().numpy()
    camera, level = estimate_noise(counts), float(estimate_background(counts))
    return problem_of(image, usable_psf(psf, image_shape(image)), level, camera)


def check_spacing(own: Any, wanted: tuple[float, float, float], name: str) -> None:
    """Refuse voxels of another size; a file that is silent is taken as it is."""
    if own is not None and any(abs(a / b - 1) > 0.02 for a, b in zip(own, wanted, strict=True)):
        raise InputError(
            f"{name}: voxels of {tuple(own)} um, the model is for {tuple(wanted)} um. Resample, or "
            "train a model for these voxels."
        )

