"""Training of a network from a recipe: checked first, resumed where it was interrupted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import as_volume, image_shape, problem_of, usable_psf
from pellucid.core.fourier import Shape
from pellucid.core.noise import estimate_background, estimate_noise
from pellucid.core.problem import Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.varying_blur import VaryingBlur
from pellucid.data.model_files import check_model_path, read_tensors, write_model, write_tensors
from pellucid.data.recording import open_recording
from pellucid.errors import InputError, ParameterError
from pellucid.networks import team
from pellucid.networks.evidence import error_of, rehearsal, squares_of
from pellucid.networks.features import classical
from pellucid.networks.model import Architecture, RestorationNet, count_parameters
from pellucid.networks.polish import Estimator
from pellucid.networks.restorer import Network
from pellucid.networks.share import Share, fit_share
from pellucid.networks.structures import BANK, Light
from pellucid.networks.training import (
    Pair,
    Pairs,
    RecordedPairs,
    Schedule,
    SimulatedPairs,
    Tensors,
    Trainer,
    held_out_pairs,
    pair_of,
)
from pellucid.networks.trust import Trust, calibration_case, fit
from pellucid.networks.views import Microscope, Optics, Views, joint_views, microscope_of, varies
from pellucid.stages.networks.optics import (
    check_spacing,
    optics_card,
    optics_tensors,
    read_optics,
    voxels_of,
)
from pellucid.stages.networks.parameters import TrainParameters
from pellucid.stages.networks.placing import (
    check_views,
    given_places,
    places,
    registered,
    shared_world,
    views_at,
)
from pellucid.stages.registration.view_series import open_views
from pellucid.stages.work.resources import resolve_device

OnLook = Callable[[Trainer], None]

PLACES_OF_FIELD = 7
"""Other places of a PSF field at which recordings are simulated, where it is larger than these."""


def train(parameters: TrainParameters, on_look: OnLook = lambda trainer: None) -> Path:
    """Train by `parameters` and write the model; an interrupted run goes on from its checkpoint.

    Started by torchrun, as many processes train together, and the first of them writes.
    """
    with team.together(resolve_device(parameters.device)) as device:
        return _trained(parameters, device, on_look)


def _trained(parameters: TrainParameters, device: str, on_look: OnLook) -> Path:
    check_model_path(parameters.output, parameters.overwrite)
    psf = read_optics(parameters)
    microscopes = microscopes_of(psf, parameters.shape)
    light = Light(parameters.peak_photons, parameters.background_photons)
    simulated = SimulatedPairs(
        microscopes[0].operators, parameters.structures, light, parameters.seed,
        microscopes[0].window, elsewhere=tuple(m.operators for m in microscopes[1:]),
    )  # fmt: skip
    held_out_pairs(simulated, parameters.held_out, 1)  # refuses structures that are trained on
    recorded = None if parameters.source == "simulated" else _recorded(parameters, psf, device)
    run = _Run(parameters, device, simulated, recorded, varies(psf), on_look)
    network = Network(run.trained(None))
    for _ in range(1, parameters.passes):
        network = replace(network, refining=(*network.refining, run.trained(network)))
    if not team.is_first():
        return parameters.output
    nets = (network.weights, *network.refining)
    trust, share = calibrated(network, parameters, psf, light)
    card = {
        "networks": [net.architecture.as_dict() for net in nets],
        "parameters": sum(count_parameters(net) for net in nets),
        **optics_card(psf), "modality": parameters.modality, "recipe": parameters.plain(),
        "structures": parameters.structures, "peak_photons": parameters.peak_photons,
        "background_photons": parameters.background_photons, "licence": parameters.licence,
        "metrics": {"held_out_nrmse": min(row["held_out"] for row in run.curves[-1])},
        "curves": run.curves, "trust": trust.as_dict(),
        "share": share.as_dict(),
    }  # fmt: skip
    weights = {f"net{i}.{k}": v for i, net in enumerate(nets) for k, v in net.state_dict().items()}
    weights |= optics_tensors(psf)
    model = write_model(parameters.output, weights, card, overwrite=parameters.overwrite)
    checkpoint_path(parameters.output).unlink(missing_ok=True)
    return model


class _Run:
    """The trainings of one recipe, network after network, with one checkpoint for all."""

    def __init__(
        self,
        parameters: TrainParameters,
        device: str,
        simulated: SimulatedPairs,
        recorded: RecordedPairs | None,
        positioned: bool,
        on_look: OnLook,
    ) -> None:
        self.parameters, self.simulated, self.recorded = parameters, simulated, recorded
        self.device, self.on_look = device, on_look
        self.checkpoint = checkpoint_path(parameters.output)
        self.recipe = parameters.plain()
        self.positioned = positioned
        self.done: Tensors = {}
        self.curves: list[list[dict[str, float]]] = []
        self.begun: tuple[Tensors, dict[str, Any]] | None = None
        if self.checkpoint.is_file():
            self.begun = read_tensors(self.checkpoint)
            if {**self.begun[1].get("recipe", {}), "overwrite": 0} != {**self.recipe, "overwrite": 0}:
                raise ParameterError(
                    f"{self.checkpoint.name}: begun with another recipe. Finish it with that one, "
                    "delete it, or choose another output."
                )

    def trained(self, before: Network | None) -> RestorationNet:
        """Return the next network, trained to refine the answers of those `before` it."""
        p, number = self.parameters, len(self.curves)
        simulated = replace(self.simulated, before=before)
        pairs: Pairs = simulated
        if (recorded := self.recorded) is not None:
            known = slice(0, max(1, len(recorded.problems) - 1))
            pairs = replace(
                recorded, problems=recorded.problems[known], truths=recorded.truths[known], before=before
            )
        architecture = Architecture(
            views=len(simulated.operators), volumetric=p.shape[0] > 1, width=p.width,
            refining=before is not None,
            positioned=self.positioned,
        )  # fmt: skip
        net = RestorationNet(architecture, p.seed + number)
        schedule = Schedule(
            max(1, p.steps // p.passes), p.batch, p.reuse, p.patch, p.learning_rate,
            p.validate_every, p.patience, p.seed,
        )  # fmt: skip
        held_out = self._held_out(simulated, before)
        trainer = Trainer(net, pairs, held_out, schedule, self.device)
        if self.begun is not None and number < self.begun[1].get("number", 0):
            finished = _part(self.begun[0], f"done{number}.")
            self._finish(net, finished, self.begun[1]["curves"][number])
            return net
        if self.begun is not None and number == self.begun[1].get("number", 0):
            trainer.load(self.begun[0], self.begun[1]["training"])
        trainer.run(on_look=self._look)
        self._finish(net, trainer.best, trainer.curve)
        return net

    def _held_out(self, simulated: SimulatedPairs, before: Network | None) -> tuple[Pair, ...]:
        """Return what stops the training: the last of several recordings, or other structures."""
        last = self.recorded
        if last is None or len(last.problems) == 1:
            return held_out_pairs(simulated, self.parameters.held_out, 6)
        return (pair_of(last.problems[-1], last.truths[-1], before),)

    def _finish(self, net: RestorationNet, weights: Tensors, curve: list[dict[str, float]]) -> None:
        net.cpu().load_state_dict(weights)
        net.eval()
        self.done |= {f"done{len(self.curves)}.{k}": v for k, v in weights.items()}
        self.curves.append(curve)

    def _look(self, trainer: Trainer) -> None:
        if not team.is_first():
            return
        tensors, training = trainer.state()
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "recipe": self.recipe, "training": training, "number": len(self.curves),
            "curves": self.curves,
        }  # fmt: skip
        write_tensors(self.checkpoint, {**tensors, **self.done}, values)
        self.on_look(trainer)


def checkpoint_path(output: Path) -> Path:
    """Where the state of a training is kept until its model is written."""
    return output.with_name(output.name + ".checkpoint")


def calibrated(
    network: Estimator, parameters: TrainParameters, psf: Optics, light: Light
) -> tuple[Trust, Share]:
    """The verdict and the cure, fitted on structures trained on and others, by the PSF and wrong ones."""
    logs, errors, rehearsed, true, held = [], [], [], [], []
    kinds = parameters.calibrated_on or tuple(BANK)
    for i in range(parameters.calibration):
        seed = parameters.seed + 2_000_003 + i
        case = calibration_case(psf, parameters.shape, light, seed, kinds)
        x, plain = network.estimate(case.problem), classical(case.problem)
        evidence = rehearsal(case.problem, plain)
        logs.append(evidence.logs(network, x))
        errors.append(error_of(case.problem, x, case.truth))
        rehearsed.append(evidence.squares(network))
        true.append(squares_of(case.problem, x, plain, case.truth))
        held.append(case.kind)
    return fit(logs, errors, held), fit_share(rehearsed, true)


def microscopes_of(psf: Optics, shape: Shape) -> list[Microscope]:
    """The microscope that records a volume of `shape`, and the same at other places.

    These are of a field that is larger than the volume; of views, where voxels fall otherwise between those
    of the object.
    """
    here = microscope_of(psf, shape)
    if isinstance(psf, Views):
        others = (microscope_of(psf, shape, seed) for seed in range(1, 1 + PLACES_OF_FIELD))
        return [here, *(m for m in others if m.window == here.window)]
    blur = here.operators[0]
    if not isinstance(blur, VaryingBlur):
        return [here]
    spare = [
        float(k[-1] - k[0]) - (n - 1) * d if len(k) > 1 else 0.0
        for k, n, d in zip(blur.expansion.knots, shape, blur.expansion.spacing_um, strict=True)
    ]
    rng = np.random.default_rng(0)
    crops = [here]
    for _ in range(PLACES_OF_FIELD if max(spare) > 0 else 0):
        z, y, x = (
            float(k[0]) + float(rng.uniform()) * max(free, 0.0)
            for k, free in zip(blur.expansion.knots, spare, strict=True)
        )
        there = VaryingBlur(blur.expansion, shape, origin_um=(z, y, x))
        crops.append(Microscope((there,), there.window))
    return crops


def _recorded(parameters: TrainParameters, optics: Optics, device: str) -> RecordedPairs:
    paths, truths = parameters.recordings, parameters.truths
    if not paths or (parameters.source == "pairs" and len(truths) != len(paths)):
        raise InputError(
            f"recordings: {len(paths)} and {len(truths)} truths for source {parameters.source!r}. "
            "Give recordings, and for pairs a truth for each in the same order."
        )
    problems, answers = [], []
    if isinstance(optics, Views):
        problems = _recorded_views(parameters, optics, device)
        answers = [Accelerated(seed=parameters.seed)(problem).image for problem in problems]
        return RecordedPairs(tuple(problems), tuple(answers), parameters.seed)
    for i, path in enumerate(paths):
        recording = open_recording(path, voxel_um=None)
        check_spacing(recording.voxel_um, voxels_of(optics), path.name)
        image = as_volume(recording.read())
        if float(image.max()) <= float(image.min()):
            raise InputError(f"{path.name}: a constant image teaches nothing. Leave it out.")
        problem, gain = photon_problem(image, optics)
        problems.append(problem)
        if parameters.source == "teacher":
            answers.append(Accelerated(seed=parameters.seed)(problem).image)
        else:
            answers.append(as_volume(open_recording(truths[i]).read()) / gain)
    return RecordedPairs(tuple(problems), tuple(answers), parameters.seed)


def _recorded_views(parameters: TrainParameters, optics: Views, device: str) -> list[Problem]:
    """The problem of each object that was recorded: its views one after the other in the recipe."""
    if parameters.source == "pairs":
        raise ParameterError(
            "source: pairs are of one view, as a truth must lie on the object's voxels. Of several views "
            "take the classical solution as teacher (source: teacher)."
        )
    paths, count = parameters.recordings, len(optics.psfs)
    if len(paths) % count:
        raise InputError(
            f"recordings: {len(paths)} for {count} views. Name all views of an object, then the next one's."
        )
    problems = []
    for first in range(0, len(paths), count):
        views = open_views(paths[first : first + count])
        check_views(views, optics, "recordings")
        if parameters.transforms is None:
            found = registered(optics, views, device)
        else:
            found = given_places(parameters.transforms.expanduser(), optics, views)
        world = shared_world(optics, places(optics, views, found), views)
        problems.append(joint_views(views_at(views, optics, found, 0, 0), world, device)[0])
    return problems


def photon_problem(image: Tensor, psf: Psf | PsfField) -> tuple[Problem, float]:
    """The problem of an image of counts, its noise and background measured, and its gain."""
    counts = image.cpu().numpy()
    camera, level = estimate_noise(counts), float(estimate_background(counts))
    return problem_of(image, usable_psf(psf, image_shape(image)), level, camera)


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
