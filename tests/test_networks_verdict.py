"""The verdict knows what is wrong, where more is wrong and by another PSF; the cure does no harm."""

import json

import numpy as np
import pytest
import torch

from microscopes import gaussian_psf
from pellucid.core.operators import Blur
from pellucid.core.psf import Psf, fwhm_px
from pellucid.core.wrongness import by_region
from pellucid.errors import InputError
from pellucid.networks.evidence import (
    FEATURES,
    Squares,
    error_of,
    recorded_again,
    rehearsal,
    sharpened,
    squares_of,
)
from pellucid.networks.features import classical
from pellucid.networks.polish import smooth
from pellucid.networks.share import Share, fallen_back, fit_share
from pellucid.networks.structures import Light, simulate
from pellucid.networks.trust import (
    ALARMS,
    WIDENED,
    WRONG,
    Trust,
    calibration_case,
    fit,
    recorded,
    scores,
    stretched,
)
from pellucid.networks.views import microscope_of
from pellucid.networks.wiener import wiener_step

SHAPE = (12, 24, 24)
PSF = torch.from_numpy(gaussian_psf((5, 5, 5), (3.0, 2.0, 2.0)).astype(np.float32))


class Inventing:
    """Sharpens as it should, and adds a bright block to every answer."""

    def estimate(self, problem):
        o = problem.observations[0]
        x = smooth(wiener_step(o.image - o.background, o.operator).clamp_min(0), 3)
        x[:, :, : x.shape[2] // 3] += x.max() / 6
        return x


BLUR_WIDE = Blur(PSF, (16, 48, 48))


def test_the_verdict_tells_inventions_from_truth():
    light = Light((200.0, 400.0), (1.0, 2.0))
    kinds = ["shells", "nuclei", "points", "nuclei", "shells"]
    evidence, errors = [], []
    for seed, kind in enumerate(kinds):
        example = simulate((BLUR_WIDE,), kind, seed, light)
        x, plain = Inventing().estimate(example.problem), classical(example.problem)
        evidence.append(rehearsal(example.problem, plain).logs(Inventing(), x))
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
    rehearsed, other, _ = np.moveaxis(rehearsal(example.problem, plain).logs(Inventing(), x), -1, 0)
    assert np.median(np.abs(rehearsed - np.log(off))) < 0.3
    # A right answer is contradicted less.
    found = rehearsal(example.problem, plain).logs(Inventing(), example.truth)
    assert found[..., 1].mean() < other.mean() - 0.3
    assert (error_of(example.problem, x, 0 * x) == 1).all()
    first, other = (recorded_again(example.problem, x, seed).observations[0].image for seed in (1, 2))
    assert not torch.equal(first, other)


def calibrated(seed, kinds, typical):
    """Evidence that tells the error but for a spread, of recordings that err by about `typical`."""
    rng = np.random.default_rng(seed)
    evidence, errors = [], []
    for _ in kinds:
        true = rng.normal(np.log(typical), 0.4, (4, 4, 4)) + rng.normal(0, 0.2)
        noise = rng.normal(0, (0.1, 0.2), (4, 4, 4, len(FEATURES)))
        evidence.append(np.concatenate([true[..., None] - 0.1 + noise, np.zeros((4, 4, 4, 1))], axis=-1))
        errors.append(np.exp(true))
    return evidence, errors


def test_probabilities_hold_where_more_is_wrong_or_less_than_in_the_calibration():
    kinds = ["points", "shells", "points+nuclei", "nuclei"] * 8
    trust = fit(*calibrated(1, kinds, 0.3), kinds)
    assert trust.weights[0] > trust.weights[1] > 0
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
    shift = np.array([0.3, 0.3, 0.0])
    misleading = [e + shift * (kind == "shells") for e, kind in zip(evidence, kinds, strict=True)]
    trust = fit(misleading, errors, kinds)
    assert trust.limit > before
    shells = [i for i, kind in enumerate(kinds) if kind == "shells"]
    doubt = trust.doubted(trust.believable(np.stack([misleading[i] for i in shells])))
    assert doubt[np.stack([errors[i] for i in shells]) <= WRONG].mean() <= ALARMS


class Classical:
    def estimate(self, problem):
        return classical(problem)


@pytest.mark.parametrize("kind", ["filaments", "membranes"])
def test_an_answer_blurred_by_a_wider_psf_than_was_told_lacks_fine_structure(kind):
    shape, light = (16, 48, 48), Light((300.0, 300.0), (1.0, 1.0))
    psf = Psf.normalised(gaussian_psf((9, 7, 7), (4.0, 3.0, 3.0)))
    told, wider = (microscope_of(p, shape) for p in (psf, stretched(psf, (1.5, 1.3, 1.3))))
    detail = []
    for really in (told, wider):
        problem = recorded(kind, 4, really, told, light).problem
        plain = classical(problem)
        detail.append(rehearsal(problem, plain).logs(Classical(), plain)[0, 0, 0, -1])
    assert detail[1] < detail[0] - 0.1


def test_an_error_is_taken_to_be_larger_where_fine_structure_is_lacking_and_never_smaller():
    trust = Trust((1.0, 0.0), 0.0, 0.2, 0.5, detail=0.1)
    logs = np.zeros((3, 3))
    logs[:, 2] = (0.4, 0.1, -0.3)
    errors = trust.error(logs)
    assert errors[0] == pytest.approx(errors[1])
    assert errors[2] / errors[1] == pytest.approx(np.exp(0.4 * WIDENED), rel=0.02)
    assert trust.believable(logs)[2] < trust.believable(logs)[1]


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


def test_stretched_psfs_are_as_wide_as_asked():
    psf = Psf.normalised(gaussian_psf((15, 15, 15), (4.0, 3.0, 3.0)))
    wide = stretched(psf, (1.5, 1.2, 1.2))
    assert fwhm_px(wide) == pytest.approx((6.0, 3.6, 3.6), rel=0.03)
    assert wide.values.sum() == pytest.approx(1.0)


def rehearsals(correction, seed=0, count=6):
    """Errors in rehearsals, and on objects where the classical solution errs `correction` times as much."""
    rng = np.random.default_rng(seed)
    rehearsed, true = [], []
    for _ in range(count):
        plain, answer = np.exp(rng.normal(0, 0.4, 2))
        together = rng.uniform(0.2, 0.6)
        values = (plain**2, answer**2, together * plain * answer)
        off = Squares(*(np.full((2, 3, 3), v) for v in values))
        rehearsed.append(off)
        true.append(Squares(correction**2 * off.plain, off.answer, correction * off.product))
    return rehearsed, true


def test_the_share_of_a_network_is_what_would_have_been_best():
    for correction in (0.8, 1.3):
        rehearsed, true = rehearsals(correction)
        rule = fit_share(rehearsed, true)
        assert rule.correction == pytest.approx(correction, rel=0.03)
        for before, after in zip(rehearsed, true, strict=True):
            share = rule.of(before)
            assert 0 <= share.min() <= share.max() <= 1
            best = after.blended(share).mean()
            shares = np.linspace(0, 1, 101)[:, None, None, None]
            assert best < 1.001 * after.blended(shares).mean(axis=(1, 2, 3)).min()
            assert best <= after.plain.mean()
    assert Share.from_dict(json.loads(json.dumps(rule.as_dict()))) == rule
    with pytest.raises(InputError, match="cure is not complete"):
        Share.from_dict({"weights": [1.0]})


def test_a_rule_that_makes_some_recordings_worse_is_not_worth_as_much_gain_elsewhere():
    better, worse = rehearsals(1.3, count=4), rehearsals(0.6, count=4)
    apart = [fit_share(*both).correction for both in (better, worse)]
    together = fit_share(better[0] + worse[0], better[1] + worse[1]).correction
    assert apart[1] < together < np.sqrt(apart[0] * apart[1])


def test_squares_are_those_of_the_errors_and_blends_have_the_error_that_they_say():
    example = simulate((BLUR_WIDE,), "shells", 1)
    plain, answer = classical(example.problem), Inventing().estimate(example.problem)
    squares = squares_of(example.problem, answer, plain, example.truth)
    for share in (0.0, 0.3, 1.0):
        off = (plain + share * (answer - plain) - example.truth)[BLUR_WIDE.window].numpy()
        told = squares.blended(np.full(squares.plain.shape, share))
        np.testing.assert_allclose(told, by_region(off**2), rtol=1e-3)


def test_a_sharpened_object_keeps_most_of_its_light_and_stands_out_more():
    example = simulate((BLUR_WIDE,), "points", 2)
    plain = classical(example.problem)
    sharp = sharpened(plain, (1.5, 1.0, 1.0))
    assert float(sharp.sum()) == pytest.approx(float(plain.sum()), rel=0.1)
    assert float(sharp.square().sum()) > 1.1 * float(plain.square().sum())
    assert float(sharp.min()) >= 0
    even = torch.full((8, 16, 16), 5.0)
    inside = (slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(sharpened(even, (1.0, 1.0, 1.0))[inside], even[inside])


def test_the_cure_falls_back_where_the_network_invents():
    example = simulate((BLUR_WIDE,), "nuclei", 3, Light((200.0, 200.0), (1.0, 1.0)))
    plain, answer = classical(example.problem), Inventing().estimate(example.problem)
    share = Share().of(rehearsal(example.problem, plain).squares(Inventing()))
    # The first third is invented.
    assert share[..., 0].max() < 0.2
    true = squares_of(example.problem, answer, plain, example.truth)
    assert true.blended(share).mean() < 1.01 * true.plain.mean()
