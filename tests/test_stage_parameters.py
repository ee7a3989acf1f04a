"""Parameters: one model for the command line, YAML, the environment and Python."""

from typing import get_args

import pytest
import yaml

from pellucid.apps.options import as_yaml, merged, read_config
from pellucid.core.back_projectors import METHODS
from pellucid.core.psf_theory import Modality as TheoryModality
from pellucid.errors import ParameterError
from pellucid.stages.parameters import DeconvolveParameters, Method, Modality

LEAST = {"inputs": "a.tif", "output": "b.tif"}


def test_names_agree_with_the_core():
    assert set(get_args(Method)) == set(METHODS)
    assert set(get_args(Modality)) == set(get_args(TheoryModality))


@pytest.mark.parametrize(
    "given", ["0.3,0.1,0.2", ["0.3", "0.1", "0.2"], (0.3, 0.1, 0.2), "0.3, .1,.2"]
)
def test_triples_are_typed_as_people_do(given):
    assert DeconvolveParameters.checked({**LEAST, "voxel_um": given}).voxel_um == (0.3, 0.1, 0.2)


@pytest.mark.parametrize(
    ("given", "meant"), [("405,525", (405, 525)), (461, (461,)), ([1, "2"], (1, 2))]
)
def test_one_or_one_each(given, meant):
    assert DeconvolveParameters.checked({**LEAST, "wavelength_nm": given}).wavelength_nm == meant


def test_auto_is_none():
    parameters = DeconvolveParameters.checked({**LEAST, "iterations": "auto", "background": "auto"})
    assert (parameters.iterations, parameters.background) == (None, None)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"iteratons": 3}, r"iteratons: no such parameter. Did you mean 'iterations'\?"),
        ({"zzz": 3}, r"zzz: no such parameter. There are: .*method"),
        ({"method": "rl"}, r"method: expected 'matched', 'gaussian'.*got 'rl'"),
        ({"iterations": 0}, r"iterations: expected greater than or equal to 1, got 0"),
        ({"voxel_um": "1,2"}, r"voxel_um"),
        ({"na": "wide"}, r"na: expected a valid number.*got 'wide'"),
    ],
)
def test_mistakes_are_one_sentence(wrong, sentence):
    with pytest.raises(ParameterError, match=sentence) as caught:
        DeconvolveParameters.checked({**LEAST, **wrong})
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named():
    with pytest.raises(ParameterError, match="output: needed, and not given"):
        DeconvolveParameters.checked({"inputs": "a.tif"})


def test_flags_rank_above_the_environment_above_yaml_above_defaults(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text("method: wiener\niterations: 5\ndevice: cpu\n")
    monkeypatch.setenv("PELLUCID_DECONVOLVE_ITERATIONS", "6")
    monkeypatch.setenv("PELLUCID_DECONVOLVE_DEVICE", "cuda")
    values = merged(DeconvolveParameters, "deconvolve", path, {**LEAST, "device": "auto"})
    parameters = DeconvolveParameters.checked(values)
    assert (parameters.method, parameters.iterations) == ("wiener", 6)
    assert (parameters.device, parameters.dtype) == ("auto", "float32")


def test_the_printed_configuration_is_read_back(tmp_path):
    parameters = DeconvolveParameters.checked(
        {**LEAST, "voxel_um": "0.3,0.1,0.1", "psf": ["a, b.tif"], "wavelength_nm": "405,525"}
    )
    path = tmp_path / "c.yaml"
    path.write_text(as_yaml(parameters))
    assert set(yaml.safe_load(path.read_text())) == set(DeconvolveParameters.model_fields)
    assert DeconvolveParameters.checked(read_config(path)) == parameters


def test_a_configuration_that_is_none(tmp_path):
    path = tmp_path / "c.yaml"
    with pytest.raises(ParameterError, match=r"c\.yaml: cannot be read"):
        read_config(path)
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ParameterError, match=r"is no YAML in line 2"):
        read_config(path)
    path.write_text("just words")
    with pytest.raises(ParameterError, match=r"expected lines such as"):
        read_config(path)


def test_parameters_are_frozen():
    parameters = DeconvolveParameters.checked(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        parameters.method = "matched"  # type: ignore[misc]
