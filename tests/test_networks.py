"""Networks: equivariant, deterministic, resumable; files that refuse; polish and verdict that work."""

import json

import numpy as np
import pytest
import torch

from microscopes import LIGHT_SHEET, gaussian_psf
from pellucid.core.operators import Blur
from pellucid.core.problem import Problem
from pellucid.core.psf import Psf, fwhm_px
from pellucid.data.model_files import read_model, read_tensors, write_model, write_tensors
from pellucid.errors import InputError, ParameterError
from pellucid.networks.evidence import FEATURES, error_of, gather, recorded_again
from pellucid.networks.features import (
    BORDER,
    classical,
    inputs_of,
    on_object,
    positions_of,
    recorded_part,
    whole,
)
from pellucid.networks.model import Architecture, RestorationNet, count_parameters
from pellucid.networks.polish import Polished, smooth
from pellucid.networks.restorer import Network
from pellucid.networks.share import Share, best_share, fallen_back, fit_share
from pellucid.networks.structures import BANK, Light, simulate, specimen
from pellucid.networks.training import (
    RecordedPairs,
    Schedule,
    SimulatedPairs,
    Trainer,
    held_out_pairs,
    relative_error,
)
from pellucid.networks.trust import (
    ALARMS,
    WRONG,
    Trust,
    calibration_case,
    fit,
    scores,
    stretched,
)
from pellucid.networks.wiener import wiener_step

SHAPE = (12, 24, 24)
BLUR = Blur(torch.from_numpy(gaussian_psf((5, 5, 5), (3.0, 2.0, 2.0)).astype(np.float32)), SHAPE)
SMALL = Architecture(width=8)


def filled(architecture=SMALL, seed=0):
    """A network whose last weights are not zero, as after training."""
    net = RestorationNet(architecture, seed)
    with torch.no_grad():
        net.tail.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(seed))
    return net.eval()


def trainer(seed=0):
    pairs = SimulatedPairs((BLUR,), ("points",), seed=seed)
    held = held_out_pairs(pairs, ("shells",), 2)
    schedule = Schedule(steps=6, patch=(8, 16, 16), validate_every=2)
    return Trainer(RestorationNet(SMALL, seed), pairs, held, schedule)


@pytest.mark.parametrize("kind", [*BANK, "filaments+nuclei"])
@pytest.mark.parametrize("shape", [(10, 24, 24), (1, 32, 30)])
def test_structures_are_repeatable_and_differ_by_seed(kind, shape):
    first = specimen(kind, shape, 3)
    assert first.shape == shape
    assert first.min() >= 0
    assert first.max() > 0
    np.testing.assert_array_equal(first, specimen(kind, shape, 3))
    assert np.abs(first - specimen(kind, shape, 4)).max() > 0.1


def test_the_network_is_small_homogeneous_and_takes_any_size():
    assert count_parameters(RestorationNet()) < 100_000
    net = filled()
    inputs = torch.rand(1, 3, 7, 18, 21, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = net(inputs)
        assert out.shape == (1, 7, 18, 21)
        torch.testing.assert_close(net(37 * inputs), 37 * out, rtol=1e-4, atol=1e-4)
        assert torch.equal(net(inputs), out)


def test_a_start_can_be_withheld():
    net = filled()
    inputs = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.judge.weight[1] = 0  # nothing speaks against the start
        net.tail.weight.zero_()
        torch.testing.assert_close(net(inputs), inputs[:, 1])
        net.judge.weight[:] = net.judge.weight.flip(0)
        assert float(net(inputs).abs().max()) == 0


def test_every_patch_asks_for_the_same_part_of_its_error():
    generator = torch.Generator().manual_seed(0)
    truth, off = (torch.rand(2, 4, 8, 8, generator=generator) for _ in range(2))
    inputs = 1 + torch.rand(2, 3, 4, 8, 8, generator=generator)

    def error(*shares):
        part = torch.tensor([*map(float, shares)])[:, None, None, None]
        return float(relative_error(truth + part * off, truth, inputs))

    # a tenth less of a large error is worth what a tenth less of a small one is
    assert error(9, 0.1) == pytest.approx(error(10, 0.09), abs=1e-3)
    assert error(10, 0.1) - error(9, 0.1) == pytest.approx(-np.log(0.9), abs=1e-3)


def test_nothing_reaches_farther_than_the_receptive_radius():
    net = filled()
    inputs = torch.rand(1, 3, 4, 96, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    net(inputs)[0, 2, 48, 4].backward()
    reached = inputs.grad.abs().amax(dim=(0, 1, 2, 4)).nonzero().ravel() - 48
    assert 12 < reached.abs().max() <= net.receptive_radius[1]


def test_the_wiener_step_is_linear_and_sharpens():
    example = simulate((BLUR,), "points", 1)
    o = example.problem.observations[0]
    signal = o.image - o.background
    sharp = wiener_step(signal, BLUR)
    torch.testing.assert_close(wiener_step(3 * signal, BLUR), 3 * sharp, rtol=1e-4, atol=1e-2)

    def likeness(x):
        return float(torch.corrcoef(torch.stack([x[BLUR.window].ravel(), truth]))[0, 1])

    truth = example.truth[BLUR.window].ravel()
    raw = on_object(signal, BLUR, whole(example.problem))
    assert likeness(sharp) > likeness(raw) + 0.02


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = trainer()
    whole.run()
    half = trainer()
    half.run(3)
    write_tensors(tmp_path / "a.safetensors", *half.state())
    resumed = trainer()
    resumed.load(*read_tensors(tmp_path / "a.safetensors"))
    resumed.run()
    assert [row["held_out"] for row in resumed.curve] == [row["held_out"] for row in whole.curve]
    for name, value in whole.best.items():
        assert torch.equal(value, resumed.best[name])


def test_bad_training_data_is_refused():
    problem = simulate((BLUR,), "points", 1).problem
    truth = torch.rand(SHAPE)
    with pytest.raises(InputError, match="at least one, got 0"):
        RecordedPairs((), ())
    with pytest.raises(InputError, match="pair 0: NaN"):
        RecordedPairs((problem,), (truth * torch.nan,))
    with pytest.raises(InputError, match="pair 0: a constant image"):
        RecordedPairs((problem,), (torch.ones(SHAPE),))
    with pytest.raises(ParameterError, match="too few"):
        SimulatedPairs((BLUR,), ())
    with pytest.raises(ParameterError, match="points is also trained on"):
        held_out_pairs(SimulatedPairs((BLUR,), ("points",)), ("points",), 1)


def test_a_recorded_pair_is_dimmed_and_stays_a_pair():
    example = simulate((BLUR,), "nuclei", 1)
    pair = RecordedPairs((example.problem,), (example.truth,), seed=1)(0)
    share = float(pair.truth.sum() / example.truth.sum())
    light = pair.inputs[0][BLUR.window].sum() / inputs_of(example.problem)[0][BLUR.window].sum()
    assert 0.3 <= share < 1
    assert float(light) == pytest.approx(share, rel=0.05)


def test_a_network_answers_behind_the_images_and_a_little_beyond():
    psf = torch.from_numpy(gaussian_psf((15, 13, 13), (5.0, 3.0, 3.0)).astype(np.float32))
    blur = Blur(psf, (12, 24, 24))
    problem = simulate((blur,), "nuclei", 1).problem
    part = recorded_part(problem)
    assert [(w.start - p.start, p.stop - w.stop) for w, p in zip(blur.window, part, strict=True)] == [
        (BORDER, BORDER)
    ] * 3
    inputs, everywhere = inputs_of(problem, part=part), inputs_of(problem)[:, *part]
    # the noise level is averaged over what is there, so it may differ at the part's border
    torch.testing.assert_close(inputs[:2], everywhere[:2], rtol=1e-4, atol=1e-2)
    inside = (slice(None), *[slice(1, -1)] * 3)
    torch.testing.assert_close(inputs[inside], everywhere[inside], rtol=1e-4, atol=1e-2)
    assert torch.equal(positions_of(problem, part), positions_of(problem)[:, *part])
    net = filled()
    x = Network(net).estimate(problem)
    assert x.shape == problem.shape
    with torch.no_grad():
        exact = net(inputs[None])[0]
    # what is predicted may be rounded to 8 bits
    assert float((x[part] - exact).norm() / (exact - inputs[1].relu()).norm()) < 0.01
    first = part[0].start
    assert torch.equal(x[:first], x[first : first + 1].expand(first, -1, -1))


def test_a_model_for_another_number_of_views_or_planes_is_refused():
    problem = simulate((BLUR,), "points", 1).problem
    with pytest.raises(InputError, match="trained for 2 views, got 1"):
        Network(filled(Architecture(views=2, width=8)))(problem)
    with pytest.raises(InputError, match="images of one plane"):
        Network(filled(Architecture(volumetric=False, width=8)))(problem)


def test_polish_makes_the_recording_more_likely_and_repairs_darkness():
    example = simulate((BLUR,), "shells", 1)
    problem: Problem = example.problem

    class Blind:
        def estimate(self, problem):
            return torch.zeros(problem.shape)

    answer = Polished(Blind(), gated=False)(problem)
    truth = problem.windowed(example.truth)
    assert answer.stats["iterations"] >= 1
    assert float((answer.image - truth).norm()) < 0.8 * float(truth.norm())

    class Right:
        def estimate(self, problem):
            return example.truth

    gated, free = (Polished(Right(), 2, gated=g)(problem).image for g in (True, False))
    assert float((gated - truth).norm()) < 0.5 * float((free - truth).norm())


class Inventing:
    """Sharpens as it should, and adds a bright block to every answer."""

    def estimate(self, problem):
        x = wiener_step(problem.observations[0].image - problem.observations[0].background, BLUR_WIDE)
        x = smooth(x.clamp_min(0), 3)
        x[:, :, : x.shape[2] // 3] += x.max() / 6
        return x


BLUR_WIDE = Blur(BLUR.psf, (16, 48, 48))


def test_the_verdict_tells_inventions_from_truth():
    light = Light((200.0, 400.0), (1.0, 2.0))
    kinds = ["shells", "nuclei", "points", "nuclei", "shells"]
    evidence, errors = [], []
    for seed, kind in enumerate(kinds):
        example = simulate((BLUR_WIDE,), kind, seed, light)
        x, plain = Inventing().estimate(example.problem), classical(example.problem)
        evidence.append(gather(example.problem, Inventing(), x, plain))
        errors.append(error_of(example.problem, x, example.truth))
    trust = fit(evidence[:4], errors[:4], kinds[:4])
    believable = trust.believable(evidence[4])
    assert scores(believable, errors[4] > WRONG)["auroc"] > 0.9
    again = Trust.from_dict(json.loads(json.dumps(trust.as_dict())))
    np.testing.assert_allclose(again.believable(evidence[4]), believable)
    with pytest.raises(InputError, match="not complete"):
        Trust.from_dict({"weights": [1.0]})
    perfect = scores(np.array([0.9, 0.8, 0.1]), np.array([False, False, True]))
    assert (perfect["auroc"], perfect["false_alarms"]) == (1.0, 0.0)


def test_the_rehearsal_errs_about_as_much_as_the_answer():
    example = simulate((BLUR_WIDE,), "nuclei", 3, Light((200.0, 200.0), (1.0, 1.0)))
    x, plain = Inventing().estimate(example.problem), classical(example.problem)
    off = error_of(example.problem, x, example.truth)
    rehearsed, *others = np.moveaxis(gather(example.problem, Inventing(), x, plain), -1, 0)
    assert np.median(np.abs(rehearsed - np.log(off))) < 0.3
    # A right answer is contradicted less, but holds more than the recording says.
    found = gather(example.problem, Inventing(), example.truth, plain)
    _, apart, unsaid = np.moveaxis(found, -1, 0)
    assert apart.mean() < others[0].mean() - 0.3
    assert unsaid.mean() > others[1].mean()
    assert (error_of(example.problem, x, 0 * x) == 1).all()
    first, other = (recorded_again(example.problem, x, seed).observations[0].image for seed in (1, 2))
    assert not torch.equal(first, other)


def calibrated(seed, kinds, typical):
    """Evidence that tells the error but for a spread, of recordings that err by about `typical`."""
    rng = np.random.default_rng(seed)
    evidence, errors = [], []
    for _ in kinds:
        true = rng.normal(np.log(typical), 0.4, (4, 4, 4)) + rng.normal(0, 0.2)
        noise = rng.normal(0, (0.1, 0.2, 0.4), (4, 4, 4, len(FEATURES)))
        evidence.append(true[..., None] - 0.1 + noise)
        errors.append(np.exp(true))
    return evidence, errors


def test_probabilities_hold_where_more_is_wrong_or_less_than_in_the_calibration():
    kinds = ["points", "shells", "points+nuclei", "nuclei"] * 8
    trust = fit(*calibrated(1, kinds, 0.3), kinds)
    assert trust.weights[0] > trust.weights[1] > trust.weights[2] >= 0
    assert sum(trust.weights) == pytest.approx(1)
    assert trust.bias == pytest.approx(0.1, abs=0.03)
    shares = []
    for seed, typical in enumerate((0.2, 0.3, 0.45)):
        evidence, errors = calibrated(2 + seed, kinds, typical)
        wrong = np.stack(errors) > WRONG
        told = scores(trust.believable(np.stack(evidence)), wrong, trust.limit)
        assert told["calibration_error"] < 0.03
        assert told["auroc"] > 0.95
        shares.append(told["wrong"])
        ratio = np.stack(errors) / np.stack([trust.error(e) for e in evidence])
        assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert shares[2] > 4 * shares[0]


def test_the_limit_is_that_of_the_structure_that_is_worst_when_it_is_left_out():
    kinds = ["points", "shells", "nuclei"] * 6
    evidence, errors = calibrated(7, kinds, 0.35)
    before = fit(evidence, errors, kinds).limit
    misleading = [e + 0.3 * (kind == "shells") for e, kind in zip(evidence, kinds, strict=True)]
    trust = fit(misleading, errors, kinds)
    assert trust.limit > before
    shells = [i for i, kind in enumerate(kinds) if kind == "shells"]
    doubt = trust.doubted(trust.believable(np.stack([misleading[i] for i in shells])))
    assert doubt[np.stack([errors[i] for i in shells]) <= WRONG].mean() <= ALARMS


def test_a_calibration_mixes_structures_and_microscopes():
    psf = Psf.normalised(gaussian_psf((5, 5, 5), (3.0, 2.0, 2.0)))
    light, kinds = Light((300.0, 300.0), (1.0, 1.0)), ("points", "shells")
    cases = [calibration_case(psf, SHAPE, light, seed, kinds) for seed in range(12)]
    assert {len(case.kind.split("+")) for case in cases} == {1, 2}
    told = {tuple(case.problem.observations[0].operator.psf.shape) for case in cases}
    assert len(told) > 1
    for case in cases:
        o = case.problem.observations[0]
        pair = torch.stack([o.operator.forward(case.truth).ravel(), o.image.ravel()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.6


def test_doubted_regions_fall_back_to_the_classical_solution():
    share = np.ones((2, 3, 3))
    share[1, 2, 2] = 0
    answer, plain = torch.zeros(16, 48, 48), torch.ones(16, 48, 48)
    x = fallen_back(answer, plain, share)
    assert x[15, 47, 47] == 1
    assert x[:4].max() == x[:, :24].max() == 0
    assert 0 < x[8, 40, 40] < 1


def test_a_second_network_starts_from_an_answer_that_agrees_with_the_recording():
    problem = simulate((BLUR,), "points", 1).problem
    o = problem.observations[0]
    invented = wiener_step(o.image - o.background, BLUR)
    invented[:, :, :12] += invented.max() / 2
    start = inputs_of(problem, invented)[1]
    left = [float((o.image - o.background - BLUR.forward(x)).norm()) for x in (invented, start)]
    assert left[1] < 0.3 * left[0]
    refining = filled(Architecture(width=8, refining=True), 1)
    assert Network(filled(), (refining,)).estimate(problem).shape == BLUR.domain_shape


def test_stretched_psfs_are_as_wide_as_asked():
    psf = Psf.normalised(gaussian_psf((15, 15, 15), (4.0, 3.0, 3.0)))
    wide = stretched(psf, (1.5, 1.2, 1.2))
    assert fwhm_px(wide) == pytest.approx((6.0, 3.6, 3.6), rel=0.03)
    assert wide.values.sum() == pytest.approx(1.0)


def test_model_files_refuse_what_is_not_a_model(tmp_path):
    weights = filled().state_dict()
    model = write_model(tmp_path / "m", weights, {"voxel_um": (1, 1, 1)})
    tensors, card = read_model(model)
    assert card["voxel_um"] == [1, 1, 1]
    assert all(torch.equal(tensors[k], v) for k, v in weights.items())
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(InputError, match="pickle"):
        read_model(tmp_path / "net.pt")
    with pytest.raises(InputError, match="no model"):
        read_model(tmp_path)
    path = model / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="not those of the card"):
        read_model(model)
    with pytest.raises(InputError, match="truncated"):
        read_tensors(path)
    card_path = model / "card.json"
    card_path.write_text(json.dumps({**json.loads(card_path.read_text()), "format": "x"}))
    with pytest.raises(InputError, match="expected the format 'pellucid model 2', got 'x'"):
        read_model(model)


def test_light_sheet_inputs_have_the_object_s_grid():
    blur = Blur(torch.from_numpy(LIGHT_SHEET.astype(np.float32)), (12, 20, 20))
    assert inputs_of(simulate((blur,), "nuclei", 1).problem).shape == (3, *blur.domain_shape)


def test_the_share_of_a_network_is_what_would_have_been_best():
    rng = np.random.default_rng(2)
    examples = [simulate((BLUR_WIDE,), "shells", seed) for seed in range(3)]
    plain = [classical(e.problem) for e in examples]
    # One goes twice as far as it should, one the wrong way.
    better = [c + 2 * (e.truth - c) for c, e in zip(plain, examples, strict=True)]
    worse = [c - (e.truth - c) for c, e in zip(plain, examples, strict=True)]
    evidence, best = [], []
    for doubt, answers in ((0.0, better), (1.0, worse)):
        for e, x in zip(examples, answers, strict=True):
            best.append(best_share(e.problem, x, classical(e.problem), e.truth))
            evidence.append(rng.normal(size=(*best[-1].share.shape, len(FEATURES))))
            evidence[-1][..., 0] = doubt
    np.testing.assert_allclose(best[0].share, 0.5, atol=1e-4)
    np.testing.assert_allclose(best[-1].share, -0.5, atol=1e-4)
    share = fit_share(evidence[1:], best[1:])
    np.testing.assert_allclose(share.of(evidence[0]), 0.5, atol=0.1)
    assert share.of(evidence[-1]).max() < 0.1
    assert Share.from_dict(json.loads(json.dumps(share.as_dict()))) == share
    with pytest.raises(InputError, match="cure is not complete"):
        Share.from_dict({"weights": [1.0]})
