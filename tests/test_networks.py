"""Networks: equivariant, deterministic, resumable; files that refuse; polish and verdict that work."""

import json

import numpy as np
import pytest
import torch

from microscopes import LIGHT_SHEET, gaussian_psf
from pellucid.core.operators import Blur
from pellucid.core.problem import Problem
from pellucid.data.model_files import read_model, read_tensors, write_model, write_tensors
from pellucid.errors import InputError, OutputError, ParameterError
from pellucid.networks.features import (
    BORDER,
    inputs_of,
    on_object,
    positions_of,
    recorded_part,
    whole,
)
from pellucid.networks.model import Architecture, RestorationNet, count_parameters
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.structures import BANK, simulate, specimen
from pellucid.networks.training import (
    RecordedPairs,
    Schedule,
    SimulatedPairs,
    Trainer,
    held_out_pairs,
    relative_error,
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


def test_only_a_model_is_replaced_by_a_model(tmp_path):
    weights = filled().state_dict()
    write_model(tmp_path / "m", weights, {"round": 1})
    with pytest.raises(OutputError, match="exists already"):
        write_model(tmp_path / "m", weights, {"round": 2})
    write_model(tmp_path / "m", weights, {"round": 2}, overwrite=True)
    assert read_model(tmp_path / "m")[1]["round"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("dear")
    with pytest.raises(OutputError, match="not a model"):
        write_model(tmp_path / "thesis", weights, {}, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "dear"


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
    with pytest.raises(InputError, match="expected the format 'pellucid model 3', got 'x'"):
        read_model(model)


def test_light_sheet_inputs_have_the_object_s_grid():
    blur = Blur(torch.from_numpy(LIGHT_SHEET.astype(np.float32)), (12, 20, 20))
    assert inputs_of(simulate((blur,), "nuclei", 1).problem).shape == (3, *blur.domain_shape)


@pytest.mark.parametrize("header", [640, 896, 1152, 1408])
def test_weights_whose_header_is_as_long_as_a_pickle_begins_are_no_pickle(tmp_path, header):
    path, tensors = tmp_path / "weights", {"a": torch.ones(2)}
    write_tensors(path, tensors, {"note": ""})
    spare = header - int.from_bytes(path.read_bytes()[:8], "little")
    write_tensors(path, tensors, {"note": "x" * spare})
    assert path.read_bytes()[:2] == header.to_bytes(2, "little")
    assert read_tensors(path)[1]["note"] == "x" * spare
