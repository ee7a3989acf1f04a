"""Networks of several views: seen on the object's grid, one Wiener step of all, judged on that grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pellucid.core.fusion import fuse
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import record_views, turned_arms
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf, fwhm_px
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import filaments
from pellucid.core.views import View
from pellucid.errors import InputError
from pellucid.networks.evidence import FEATURES, rehearsal, resolution_px
from pellucid.networks.features import BORDER, classical, inputs_of, positions_of, recorded_part
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.polish import Polished, contradiction
from pellucid.networks.restorer import Network
from pellucid.networks.share import Share
from pellucid.networks.structures import Light, simulate
from pellucid.networks.training import Schedule, SimulatedPairs, held_out_pairs, trained
from pellucid.networks.trust import calibration_case, stretched
from pellucid.networks.view_sampling import (
    count_places,
    object_psf,
    sampled_view,
    varying_box,
    wiener_steps,
)
from pellucid.networks.views import Views, joint_views
from pellucid.testing import dot_test

UM = 0.2
BRIGHT = Light((300.0, 300.0), (2.0, 2.0), (1.0, 1.0))
TURN = Affine.rotation("y", np.radians(88.0))


def dual(planes_every=1):
    """Two arms, at nearly a right angle, blurred along their own axes."""
    spacing = (planes_every * UM, UM, UM)
    psf = gaussian((6 * UM, 2.5 * UM, 2.5 * UM), spacing, (13 // planes_every | 1, 7, 7))
    return Views((psf, psf), (Affine.identity(), TURN), (UM, UM, UM))


SHAPE = (24, 24, 24)


def problem_of(views=None, kind="filaments", seed=3, light=BRIGHT):
    microscope = (views or dual()).microscope(SHAPE, seed)
    return simulate(microscope.operators, kind, seed, light, microscope.window)


@pytest.mark.parametrize("planes_every", [1, 3])
def test_views_on_the_objects_grid_keep_its_unit_of_light(planes_every):
    views = dual(planes_every)
    problem = problem_of(views).problem
    flat = torch.full(problem.shape, 5.0)
    observations = (Observation(o.operator.forward(flat), o.operator) for o in problem.observations)
    inputs = inputs_of(Problem(tuple(observations), problem.window), part=problem.window)
    for image in inputs[[0, 3]]:
        # the PSF that lacks what sampling blurs is not flat to the last digit
        assert float((image - 5).abs().max()) < 0.05
    assert torch.equal(inputs[1], inputs[4])
    assert float(inputs[1][4:-4, 4:-4, 4:-4].mean()) == pytest.approx(5, rel=0.02)


def test_inputs_scale_with_the_light():
    problem = problem_of().problem
    brighter = Problem(
        tuple(Observation(9 * o.image, o.operator, 9 * o.background) for o in problem.observations),
        problem.window,
    )
    once, again = (inputs_of(p, part=problem.window) for p in (problem, brighter))
    # the noise level is a square root
    for channel, factor in ((0, 9), (1, 9), (2, 3), (4, 9)):
        torch.testing.assert_close(again[channel], factor * once[channel], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("planes_every", [1, 3])
def test_a_turned_psf_is_what_a_point_becomes(planes_every):
    """Against the operators themselves: points at many phases, seen by a view and sampled back."""
    microscope = dual(planes_every).microscope(SHAPE)
    everywhere = tuple(slice(0, n) for n in microscope.operators[0].domain_shape)
    middle = [n // 2 for n in microscope.operators[0].domain_shape]
    for operator in microscope.operators:
        seen = torch.zeros(21, 21, 21)
        for phase in np.ndindex(3, 3, 3):
            place = [m + p - 1 for m, p in zip(middle, phase, strict=True)]
            point = torch.zeros(operator.domain_shape)
            point[tuple(place)] = 1.0
            image = sampled_view(operator.forward(point), operator, everywhere)
            seen += image[tuple(slice(p - 10, p + 11) for p in place)]
        measured = Psf.normalised(seen.double().clamp_min(0).numpy())
        np.testing.assert_allclose(fwhm_px(object_psf(operator)), fwhm_px(measured), rtol=0.1)


def test_one_step_of_both_views_is_nearer_to_the_object_than_that_of_either():
    example = problem_of()
    problem, window = example.problem, example.problem.window
    signals = [o.image - o.background for o in problem.observations]
    truth = example.truth[window].numpy()

    def step(problem, signals):
        return torch.stack(wiener_steps(problem, signals, window)).mean(dim=0).numpy()

    both = step(problem, signals)
    alone = [
        step(Problem((o,), window), [s])
        for o, s in zip(problem.observations, signals, strict=True)
    ]
    assert ncc(both, truth) > 0.01 + max(ncc(one, truth) for one in alone)


def test_a_network_answers_where_it_is_asked_and_is_continued_beyond():
    problem = problem_of().problem
    part = recorded_part(problem)
    assert [p.stop - p.start for p in part] == [n + 2 * BORDER for n in SHAPE]
    estimate = Network(RestorationNet(Architecture(views=2, width=8))).estimate(problem)
    assert tuple(estimate.shape) == problem.shape
    # untrained, it is a share of its start
    start = inputs_of(problem, part=part)[1].clamp_min(0)
    assert bool((estimate[part] <= 1.01 * start).all())
    assert float(estimate[0].max()) > 0


@pytest.fixture(scope="module")
def network():
    microscope = dual().microscope(SHAPE)
    supply = SimulatedPairs(
        microscope.operators, ("nuclei", "points", "filaments"), BRIGHT, window=microscope.window
    )
    held_out = held_out_pairs(supply, ("shells",), 1)
    schedule = Schedule(400, reuse=2, patch=(16, 20, 20), validate_every=200)
    net, training = trained(Architecture(views=2, width=8), supply, held_out, schedule)
    assert training.curve[-1]["held_out"] < training.curve[0]["held_out"]
    return Network(net)


def test_a_trained_network_beats_its_start_on_other_structures(network):
    example = problem_of(kind="meshes", seed=11)
    window = example.problem.window
    truth = example.truth[window]
    signals = [o.image - o.background for o in example.problem.observations]
    start = wiener_steps(example.problem, signals, window)[0].clamp_min(0)
    answer = network.estimate(example.problem)[window]
    assert float((answer - truth).norm()) < 0.95 * float((start - truth).norm())


def test_polish_mends_what_the_views_contradict_and_leaves_the_rest():
    example = problem_of(kind="shells", seed=5)
    problem, window = example.problem, example.problem.window
    lacking = example.truth.clone()
    z, y, x = (w.start for w in window)
    hole = (slice(z + 8, z + 14), slice(y + 8, y + 14), slice(x + 8, x + 14))
    lacking[hole] *= 0.2
    doubt = contradiction(problem, lacking, torch.ones(problem.shape))
    assert float(doubt[hole].mean()) > 0.5
    far = (slice(z + 20, z + 24), slice(y, y + 24), slice(x + 20, x + 24))
    assert float(doubt[far].mean()) < 0.1

    class Lacking:
        def estimate(self, problem):
            return lacking

    polished = Polished(Lacking(), 3).estimate(problem)
    errors = [float((v - example.truth)[hole].norm()) for v in (polished, lacking)]
    assert errors[0] < 0.8 * errors[1]
    torch.testing.assert_close(
        polished[far], lacking[far], rtol=0.1, atol=0.02 * float(lacking.max())
    )


def test_evidence_and_share_are_of_regions_of_the_objects_window(network):
    example = problem_of(kind="shells", seed=7)
    problem = example.problem
    # each axis is judged as finely as the view sees it that is sharpest along it
    assert max(resolution_px(problem)) < 1.6
    plain = classical(problem)
    x = network.estimate(problem)
    evidence = rehearsal(problem, plain)
    logs, share = evidence.logs(network, x), Share().of(evidence.squares(network))
    assert logs.shape == (*share.shape, len(FEATURES) + 1)
    assert np.isfinite(logs).all()
    assert 0 <= share.min() <= share.max() <= 1


def test_calibration_records_views_by_wrong_psfs_too():
    views = dual()
    wide = stretched(views, (1.5, 1.2, 1.2))
    for psf, wider in zip(views.psfs, wide.psfs, strict=True):
        np.testing.assert_allclose(
            np.divide(fwhm_px(wider), fwhm_px(psf)), (1.5, 1.2, 1.2), rtol=0.1
        )
    cases = [calibration_case(views, SHAPE, BRIGHT, seed, ("points",)) for seed in range(6)]
    for case in cases:
        assert len(case.problem.observations) == 2
        assert case.problem.windowed(case.truth).shape == torch.Size(SHAPE)
        assert float(case.problem.windowed(case.truth).max()) > 0


def widening(widths_px=(8, 4, 8), voxels=60):
    """PSFs along x of their own view."""
    places = np.linspace(0, voxels * UM, len(widths_px))
    psfs = [gaussian((w * UM, 2.5 * UM, 2.5 * UM), (UM, UM, UM), (17, 7, 7)) for w in widths_px]
    return PsfField.of(psfs, [(0.0, 0.0, x) for x in places])


def test_a_field_that_does_not_vary_is_its_one_psf():
    psf = gaussian((6 * UM, 2.5 * UM, 2.5 * UM), (UM, UM, UM), (13, 7, 7))
    same = PsfField.of([psf, psf], [(0.0, 0.0, 0.0), (0.0, 0.0, 40 * UM)])
    # a field says where the voxels lie, and one PSF does not: the same places for both
    one, other = (Views.turned([p, same], [Affine.identity(), TURN], (UM, UM, UM)) for p in (same, psf))
    seen = []
    for views in (one, other):
        microscope = views.microscope(SHAPE)
        example = simulate(microscope.operators, "points", 3, BRIGHT, microscope.window)
        seen.append(inputs_of(example.problem, part=microscope.window))
    scale = float(seen[0].max())
    torch.testing.assert_close(seen[0] / scale, seen[1] / scale, atol=2e-3, rtol=0)


def test_views_whose_blur_varies_are_solved_and_filtered_place_by_place():
    field = widening((4, 8, 12), 24)
    mirrored = replace(field, psfs=field.psfs[::-1])
    turns = [Affine.identity(), TURN]
    views, wrong = (Views.turned([f, f], turns, (UM, UM, UM)) for f in (field, mirrored))
    microscope, other = views.microscope(SHAPE), wrong.microscope(SHAPE)
    for operator in microscope.operators:
        assert dot_test(operator) < 1e-5
    example = simulate(microscope.operators, "meshes", 3, BRIGHT, microscope.window)
    window = microscope.window
    truth = example.truth[window].numpy()
    agreement = []
    for operators in (microscope.operators, other.operators):
        pairs = zip(example.problem.observations, operators, strict=True)
        told = Problem(tuple(Observation(o.image, a, o.background) for o, a in pairs), window)
        signals = [o.image - o.background for o in told.observations]
        start = ncc(wiener_steps(told, signals, window)[0].numpy(), truth)
        agreement.append((start, ncc(classical(told)[window].numpy(), truth)))
    (start, solved), (start_by_wrong, solved_by_wrong) = agreement
    assert start > 0.005 + start_by_wrong
    assert solved > 0.01 + solved_by_wrong
    assert solved > start


def test_views_with_fields_are_fused_in_their_own_voxels():
    world = Grid((24, 24, 24), (UM, UM, UM), frame="world")
    psf = gaussian((6 * UM, 2.5 * UM, 2.5 * UM), world.spacing_um, (13, 7, 7))
    seen = record_views(
        filaments, world, turned_arms((0, 90), world, [psf]), peak_photons=300, seed=4
    )
    same = PsfField.of([psf, psf], [(0.0, 0.0, 0.0), (0.0, 0.0, 23 * UM)])
    one, field = (
        [View(v.counts, v.grid, v.world_to_view, psf) for v in seen.views] for psf in (psf, same)
    )
    images = [fuse(views, world).image for views in (one, field)]
    torch.testing.assert_close(*images, atol=0.02 * float(images[0].max()), rtol=0)
    with pytest.raises(InputError, match="needs how='joint'"):
        fuse(field, world, how="resample-then-joint")


def test_a_network_is_told_where_in_the_fields_it_is():
    field = widening()
    views = Views.turned([field, field], [Affine.identity(), TURN], (UM, UM, UM))
    here, there = (views.microscope(SHAPE, seed) for seed in (0, 5))
    places = [
        positions_of(simulate(m.operators, "points", 1, BRIGHT, m.window).problem, m.window)
        for m in (here, there)
    ]
    middle = [float(p[0].mean()) for p in places], [float(p[2].mean()) for p in places]
    assert abs(middle[0][0]) < 0.05
    assert abs(middle[1][0]) < 0.05
    assert max(abs(middle[0][1]), abs(middle[1][1])) > 0.1
    assert float(places[0][1].abs().max()) == 0
    assert float(places[1].abs().max()) <= 1


def test_a_tilt_is_no_place():
    """Turned a little about another axis, the fields reach along it too, and mean nothing by that."""
    field = widening()
    tilted = TURN @ Affine.rotation("z", 0.05)
    views = Views.turned([field, field], [Affine.identity(), tilted], (UM, UM, UM))
    microscope = views.microscope(SHAPE)
    low, high = varying_box(microscope.operators)
    assert low[1] == high[1]
    assert count_places(microscope.operators) == 9


def test_views_that_stand_otherwise_are_measured_against_the_model():
    views = dual()
    assert max(views.turned_deg([Affine.identity(), TURN])) < 1e-3
    # how the first view lies in the world does not matter, only how the others stand to it
    tilt = Affine.rotation("x", 0.7)
    assert max(views.turned_deg([tilt, TURN @ tilt])) < 1e-3
    assert views.turned_deg([Affine.identity(), Affine.identity()])[1] == pytest.approx(
        88, abs=0.01
    )


def test_recordings_of_arms_become_the_problem_that_networks_are_trained_on():
    """Simulated apart from the operators: arms that look with splines, placed by their transforms."""
    world = Grid((32, 32, 32), (UM, UM, UM), frame="world")
    psf = gaussian((6 * UM, 2.5 * UM, 2.5 * UM), world.spacing_um, (13, 7, 7))
    arms = turned_arms((0, 90), world, [psf], misplaced=1.0, seed=2)
    seen = record_views(filaments, world, arms, peak_photons=300, seed=4)
    views = [View(v.counts, v.grid, v.world_to_view, v.psf) for v in seen.views]
    inner = world.crop((4, 4, 4), (28, 28, 28))
    problem, covered, gain = joint_views(views, inner, "cpu")
    assert problem.windowed(torch.zeros(problem.shape)).shape == torch.Size(inner.shape)
    assert float(covered.min()) == 1
    # views are cut to what the world shows, give or take a turn of two degrees
    for o in problem.observations:
        assert max(o.image.shape) <= 24 + 6
    signals = [o.image - o.background for o in problem.observations]
    start = wiener_steps(problem, signals, problem.window)[0].numpy() * gain
    truth = seen.truth[4:28, 4:28, 4:28]
    assert ncc(start, truth) > 0.85
    assert start.mean() == pytest.approx(truth.mean(), rel=0.1)
