"""Recipes: steps planned before they start, run in order, gone on with after any end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from microscopy_files import VOXEL_UM, save, save_psf
from pellucid.apps.cli import main
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.recording import open_recording
from pellucid.errors import ParameterError
from pellucid.stages.recipes.parameters import recipe_of

SHARP = {"psf": "psf.tif", "iterations": 3, "method": "matched"}
STITCH = {"inputs": "tiles/t_{y}_{x}.ome.tif", "overlap": "0,0.1,0.1"}
TWICE = [
    {"name": "once", "deconvolve": {"inputs": "raw.ome.zarr", **SHARP}},
    {"name": "twice", "deconvolve": SHARP},
    "measure",
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    psf = gaussian((0.6, 0.25, 0.25), VOXEL_UM)
    seen = record(
        STRUCTURES["filaments"], psf.values, (8, 120, 150), peak_photons=300.0,
        background_photons=5.0, camera=Camera(), seed=5,
    )  # fmt: skip
    save(folder / "raw.ome.zarr", seen.counts)
    save_psf(folder / "psf.tif")
    (folder / "tiles").mkdir()
    for r, c in np.ndindex(2, 2):
        y, x = 54 * r + r * c, 66 * c + r
        save(folder / f"tiles/t_{r}_{c}.ome.tif", seen.counts[:, y : y + 62, x : x + 80])
    return folder


@pytest.fixture
def folder(recordings, tmp_path, monkeypatch):
    shutil.copytree(recordings, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(steps, name="r.yaml", **more):
    Path(name).write_text(yaml.safe_dump({"folder": "out", "steps": steps, **more}))


def run(steps, *options, name="r.yaml"):
    write(steps, name)
    return main(["run", name, *options])


def image(name):
    return open_recording(f"out/{name}.ome.zarr").read()


def said(capsys):
    return capsys.readouterr().err


def recorded(name="r"):
    return json.loads(Path(f"out/{name}.pellucid.json").read_text())


def test_steps_run_in_order_and_equal_their_commands(folder, capsys):
    assert run(TWICE) == 0
    options = ["--psf", "psf.tif", "--iterations", "3", "--method", "matched"]
    assert main(["deconvolve", "raw.ome.zarr", "-o", "a.ome.zarr", *options]) == 0
    assert main(["deconvolve", "a.ome.zarr", "-o", "b.ome.zarr", *options]) == 0
    np.testing.assert_array_equal(image("twice"), open_recording("b.ome.zarr").read())
    assert json.loads(Path("out/measure.json").read_text())[0]["channel"] == "channel 0"
    content = recorded()
    steps = content["statistics"]["steps"]
    assert [step["step"] for step in steps] == ["once", "twice", "measure"]
    assert [step["records"][0]["command"] for step in steps] == ["deconvolve", "deconvolve", "measure"]
    assert [Path(i["path"]).name for i in content["inputs"]] == ["raw.ome.zarr"]
    assert "step 2 of 3: twice" in said(capsys)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([{"deconvolv": {}}], "'deconvolv' is no step. Did you mean 'deconvolve'?"),
        ([{"deconvolve": {"inputs": "raw.ome.zarr", "iteration": 3}}], "Did you mean 'iterations'?"),
        ([{"deconvolve": {"inputs": "raw.ome.zarr", "method": "magic"}}], "method: expected 'matched'"),
        ([{"deconvolve": SHARP}], "inputs: needed"),
        ([{"deconvolve": {"inputs": {"step": "stich"}, **SHARP}}], "no step before has"),
        ([{"measure": {"input": {"step": "sharp"}}}, TWICE[0]], "no step before has"),
        ([*TWICE[:1], {"deconvolve": {"inputs": {"step": "onec"}}}], "Did you mean 'once'?"),
        ([TWICE[0], "measure", {"deconvolve": {"inputs": {"step": "measure"}}}], "makes a table"),
        ([{**TWICE[0], "keep": False}], "no later step takes"),
        ([{**TWICE[0], "keep": "no"}], "keep: expected true or false"),
        ([TWICE[0], TWICE[0]], "'once' is taken"),
        ([{"deconvolve": {}, "measure": {}}], "expected one command, got deconvolve, measure"),
        ([{"deconvolve": {"input": "raw.ome.zarr", **SHARP}}], "Did you mean 'inputs'?"),
        ([{"deconvolve": None, "psf": "psf.tif"}], "'psf' belongs to 'deconvolve': indent it"),
        ([TWICE[0], {"measure": {"input": {"stepp": "once"}}}], "expected a value or {step: NAME}"),
        ({"measure": None}, "steps: expected a list"),
        ([], "steps"),
    ],
)
def test_words_that_make_no_sense_are_refused(folder, capsys, steps, sentence):
    assert run(steps) == 2
    err = said(capsys)
    assert sentence in err
    assert err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([{"deconvolve": {"inputs": "none.tif", **SHARP}}], "deconvolve: "),
        ([TWICE[0], {"deconvolve": {"psf": "none.tif"}}], "deconvolve: "),
        ([TWICE[0], {"measure": {"channel": 7}}], "measure: channel: '7' is not in once.ome.zarr"),
        ([TWICE[0], {"register": {"angles": "0,90"}}], "register: views: expected two or more"),
        ([TWICE[0], {"deskew": {"step_um": 1, "angle_deg": 45, "output": "no/x.ome.zarr"}}], "deskew: "),
        ([TWICE[0], {"name": "s", "stitch": {}}], "s (stitch): "),
    ],
)
def test_later_steps_are_checked_before_the_first_starts(folder, capsys, steps, sentence):
    assert run(steps) in (1, 2)
    assert sentence in said(capsys)
    assert not Path("out").exists()


def test_a_plan_says_shapes_memory_and_disk_and_starts_nothing(folder, capsys):
    write([{"deskew": {"input": "raw.ome.zarr", "step_um": 0.3, "angle_deg": 45, "dtype": "float32"},
            "keep": False}, {"deconvolve": SHARP}])  # fmt: skip
    assert main(["plan", "r.yaml", "--no-probe", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    first, second = plan["steps"]
    (skewed,), (sharp,) = first["outputs"].values(), second["outputs"].values()
    assert skewed["shape_tczyx"] == sharp["shape_tczyx"]
    assert second["takes"] == ["deskew"]
    assert plan["disk_bytes"] == first["output_bytes"] + second["output_bytes"]
    assert plan["kept_bytes"] == second["output_bytes"]
    assert plan["peak_bytes"] == max(first["peak_bytes"], second["peak_bytes"])
    assert not Path("out").exists()
    # what was planned is what comes
    assert main(["run", "r.yaml", "--json"]) == 0
    assert open_recording("out/deconvolve.ome.zarr").shape == tuple(sharp["shape_tczyx"])
    assert not Path("out/deskew.ome.zarr").exists()
    assert [s["kept"] for s in recorded()["statistics"]["steps"]] == [False, True]


def test_a_failing_step_is_named_and_what_is_before_it_is_kept(folder, capsys, monkeypatch):
    from pellucid.errors import OutputError
    from pellucid.stages.recipes import work as recipe_work

    def full(plan, on_event):
        raise OutputError("twice.ome.zarr: the disk is full.")

    whole = recipe_work._RUNS["deconvolve"]
    calls = []

    def second_fails(plan, on_event):
        calls.append(plan)
        return whole(plan, on_event) if len(calls) == 1 else full(plan, on_event)

    monkeypatch.setitem(recipe_work._RUNS, "deconvolve", second_fails)
    assert run(TWICE) == 1
    err = said(capsys)
    assert "twice (deconvolve): twice.ome.zarr: the disk is full." in err
    assert "--resume" in err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run(TWICE) == 1
    assert "an earlier run of this recipe" in said(capsys)
    before = Path("out/once.ome.zarr.pellucid.json").read_bytes()
    assert run(TWICE, "--resume") == 0
    err = said(capsys)
    assert "step 1 of 3: once is done and unchanged" in err
    assert "step 2 of 3: twice (it was interrupted)" in err
    assert Path("out/once.ome.zarr.pellucid.json").read_bytes() == before
    assert recorded()["statistics"]["steps"][0]["skipped"]
    resumed = image("twice")
    assert run(TWICE, "--overwrite") == 0
    np.testing.assert_array_equal(resumed, image("twice"))


def test_resume_says_what_changed_and_does_only_that_again(folder, capsys):
    assert run(TWICE) == 0
    said(capsys)
    changed = [TWICE[0], {"name": "twice", "deconvolve": {**SHARP, "iterations": 4}}, "measure"]
    assert run(changed, "--resume") == 0
    err = said(capsys)
    assert "step 1 of 3: once is done and unchanged" in err
    assert "twice (twice.iterations was 3, is 4)" in err
    assert "measure (twice is done again)" in err
    assert run(changed, "--resume") == 0
    assert said(capsys).count("is done and unchanged") == 3
    # an input of another content
    counts = open_recording("raw.ome.zarr").read()
    save("raw.ome.zarr", counts[::-1].copy(), overwrite=True)
    assert main(["plan", "r.yaml", "--resume", "--no-probe"]) == 0
    assert "to be done again: inputs.raw.ome.zarr was" in capsys.readouterr().out
    # an output that somebody deleted
    assert run(changed, "--resume") == 0
    shutil.rmtree("out/twice.ome.zarr")
    said(capsys)
    assert run(changed, "--resume") == 0
    assert "twice (twice.ome.zarr is gone)" in said(capsys)


def test_what_is_not_kept_is_made_again_only_where_it_is_needed(folder, capsys):
    steps = [{**TWICE[0], "keep": False}, *TWICE[1:]]
    assert run(steps) == 0
    assert "removed out/once.ome.zarr" in said(capsys)
    assert not Path("out/once.ome.zarr").exists()
    assert run(steps, "--resume") == 0
    assert said(capsys).count("is done and unchanged") == 3
    first = image("twice")
    shutil.rmtree("out/twice.ome.zarr")
    assert run(steps, "--resume") == 0
    assert "once (its output was not kept, and twice takes it)" in said(capsys)
    assert not Path("out/once.ome.zarr").exists()
    np.testing.assert_array_equal(image("twice"), first)


def test_what_exists_is_not_replaced_unasked(folder, capsys):
    Path("out").mkdir()
    save("out/once.ome.zarr")
    assert run(TWICE) == 1
    assert "exists already" in said(capsys)
    # a mistake in a step counts more than an output that is there, of this step or of an earlier one
    assert run([TWICE[0], {"measure": {"channel": 7}}]) == 2
    assert "channel: '7' is not in" in said(capsys)
    assert run(TWICE, "--overwrite") == 0
    assert run([TWICE[0], {"measure": {"channel": 7}}]) == 2
    assert "channel: '7' is not in" in said(capsys)
    assert run(TWICE) == 1
    assert "an earlier run of this recipe" in said(capsys)
    assert run(TWICE, "--overwrite", "--resume") == 2


def test_killed_at_any_moment_and_gone_on_with_the_result_is_equal(folder, capsys):
    tiled = {**SHARP, "tile": "8,128,128"}
    steps = [
        {"name": "once", "deconvolve": {"inputs": "raw.ome.zarr", **tiled}, "keep": False},
        {"name": "twice", "deconvolve": tiled},
        "measure",
    ]
    assert run(steps) == 0
    expected = image("twice")
    seconds = sum(step["seconds"] for step in recorded()["statistics"]["steps"])
    shutil.rmtree("out")
    command = [sys.executable, "-c", "import sys; from pellucid.apps.cli import main; sys.exit(main())"]
    log = Path("out/r.steps.jsonl")
    for share in (0.2, 0.6):
        resume = ["--resume"] if log.exists() else []
        process = subprocess.Popen([*command, "run", "r.yaml", *resume], stderr=subprocess.DEVNULL)
        while process.poll() is None and not (log.exists() and b"begun" in log.read_bytes()):
            time.sleep(0.01)
        time.sleep(share * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(["run", "r.yaml", *(["--resume"] if log.exists() else [])]) == 0
    np.testing.assert_array_equal(image("twice"), expected)
    assert not [name for name in os.listdir("out") if "partial" in name or "parts" in name]
    assert not Path("out/once.ome.zarr").exists()


def test_views_are_registered_and_fused_by_default(folder, capsys):
    for name in ("a", "b"):
        shutil.copytree("raw.ome.zarr", f"{name}.ome.zarr")
    steps = [
        {"register": {"inputs": ["a.ome.zarr", "b.ome.zarr"], "angles": "0,0", "model": "translation"}},
        {"fuse": {"psf": "psf.tif", "projections": False, "iterations": 2}},
    ]
    assert run(steps) == 0
    fused = recorded()["statistics"]["steps"][1]["records"][0]["parameters"]
    assert fused["transforms"] == "out/register.json"
    assert fused["inputs"] == ["a.ome.zarr", "b.ome.zarr"]
    assert run(steps, "--resume") == 0
    assert said(capsys).count("is done and unchanged") == 2


def test_a_word_for_each_step_is_filled_in():
    views = [
        {"name": n, "deskew": {"input": f"{n}.tif", "step_um": 0.5, "angle_deg": 45}} for n in "ab"
    ]
    recipe = recipe_of({"steps": [*views, {"register": {"angles": "0,90"}}, "measure"]}, "r")
    assert recipe.steps[2].takes == ("a", "b")
    assert recipe.steps[3].takes == ("b",)
    assert recipe.steps[3].values["output"] == Path("measure.json")
    with pytest.raises(ParameterError, match="steps: expected"):
        recipe_of({"steps": "deskew"}, "r")


def test_a_cluster_needs_a_step_that_can_be_spread_out(folder, capsys):
    assert run([{"measure": {"input": "raw.ome.zarr"}}], "--cluster", "local:2") == 2
    assert "no step of this recipe" in said(capsys)


def test_a_real_volume_goes_through_all_steps(folder, data_folder, capsys):
    raw = data_folder / "bead_shell" / "raw.tif"
    psf = data_folder / "bead_shell" / "psf_computed.tif"
    voxel = "0.1,0.1,0.1"
    steps = [
        {"deconvolve": {"inputs": str(raw), "psf": str(psf), "voxel_um": voxel, "psf_voxel_um": voxel,
                        "iterations": 10, "method": "matched"}},
        "measure",
    ]  # fmt: skip
    assert run(steps) == 0
    before, after = open_recording(raw).read().astype(float), image("deconvolve")
    middle = tuple(n // 2 for n in before.shape)
    # the shell is hollow: its centre becomes darker against its wall
    assert after[middle] / after.max() < 0.8 * before[middle] / before.max()


def test_the_time_of_every_step_is_told_from_a_piece(folder, capsys):
    # what it tells is compared with reality in benchmarks/recipes.py
    steps = [
        {"deskew": {"input": "raw.ome.zarr", "step_um": 0.3, "angle_deg": 45}},
        {"name": "auto", "deconvolve": {"psf": "psf.tif", "tile": "64,120,128", "iterations": 3}},
        {"fuse": {"inputs": ["raw.ome.zarr", "raw.ome.zarr"], "angles": "0,0", "psf": "psf.tif",
                  "over_time": "none", "iterations": 1}},
        {"name": "again", "stitch": STITCH, "keep": False},
        {"deconvolve": SHARP},
        "measure",
    ]  # fmt: skip
    write(steps)
    assert main(["plan", "r.yaml", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert all(step["seconds"] > 0 for step in plan["steps"])
    assert plan["seconds"] == pytest.approx(sum(step["seconds"] for step in plan["steps"]))
    # tiles that an earlier step makes have no overlaps yet to compare
    Path("one").mkdir()
    write([{"deconvolve": {"inputs": "tiles", "output": "one", **SHARP}},
           {"stitch": {"inputs": [{"step": "deconvolve"}], "grid": "2x2",
                       "overlap": "0,0.1,0.1"}}])  # fmt: skip
    assert main(["plan", "r.yaml"]) == 0
    out = capsys.readouterr().out
    assert "without stitch" in out
    assert "Nothing was started." in out


def test_a_recipe_and_a_mosaic_on_local_workers(folder, capsys):
    pytest.importorskip("distributed")
    steps = [
        {"stitch": {**STITCH, "picture": False}, "keep": False},
        {"deconvolve": {**SHARP, "tile": "8,118,128"}},
    ]
    assert run(steps) == 0
    alone = image("deconvolve")
    assert run(steps, "--cluster", "local:2", "--overwrite") == 0
    np.testing.assert_array_equal(image("deconvolve"), alone)
