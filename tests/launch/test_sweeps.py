"""The paper's sweeps: every setting exists, and figures have what they draw."""

import importlib

import pytest

from configs import sweeps
from configs.sweeps_types import (
    PRESETS,
    Bars,
    Clusters,
    Curves,
    Differences,
    Roc,
    Scatter,
    Tradeoff,
)
from copymit.mitigation.registry import with_mitigations
from copymit.scores.complexity import Complexity
from launch.trials import list_trials, load_sweep, plan, unique_tasks


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", sweeps.__all__)
def test_every_sweep_can_be_listed_with_three_seeds(name, preset):
    sweep = load_sweep(f"configs/sweeps.py:{name}")
    trials = list_trials(sweep, preset, 3)
    assert len(trials) >= 3
    assert {trial.labels["seed"] for trial in trials} == {0, 1, 2}
    labels = set.intersection(*(set(trial.labels) for trial in trials))
    for panel in sweep.panels:
        if isinstance(panel, Curves | Bars):
            assert {panel.x, panel.series} <= labels | {""}
        elif isinstance(panel, Tradeoff):
            assert {panel.point, panel.series} <= labels | {""}
        elif isinstance(panel, Differences):
            compared = {panel.changes.label, panel.series, *panel.changes.within}
            assert compared <= labels
            baseline = {trial.labels[panel.changes.label] for trial in trials}
            assert panel.changes.baseline in baseline
        elif isinstance(panel, Scatter):
            assert panel.series in labels | {""}
            assert panel.x in {f"nearest_{name}" for name in Complexity._fields}
        elif isinstance(panel, Roc):
            assert panel.series in labels
            label, value = panel.only
            assert value in {trial.labels[label] for trial in trials}
            assert all(trial.detector for trial in trials)
        else:
            assert isinstance(panel, Clusters)
            assert all(trial.analysis for trial in trials)
    settings = [
        tuple(v for k, v in trial.labels.items() if k != "seed") for trial in trials
    ]
    assert all(settings.count(setting) == 3 for setting in settings)


def test_mitigations_at_inference_share_one_training():
    sweep = load_sweep("configs/sweeps.py:table_inference_mitigations")
    tasks = unique_tasks([plan(t) for t in list_trials(sweep, "small", 1)])
    assert [task.program for task in tasks].count("train.py") == 1
    assert [task.program for task in tasks].count("evaluate.py") == 5


def test_detectors_look_at_what_the_sweep_of_mitigations_evaluates():
    keys = {}
    for name in ("mitigations", "mitigations_once", "detectors"):
        trials = list_trials(load_sweep(f"configs/sweeps.py:{name}"), "small", 2)
        keys[name] = {task.key for task in unique_tasks(plan(t) for t in trials)}
    own = {
        key
        for key in keys["detectors"]
        if "/launch/detect-" in key or "train-true" in key  # the text encoder
    }
    shared = keys["detectors"] - own
    assert len(own) == 2 * 4  # of each seed a training, an evaluation, two detections
    assert len(shared) == 2 * 2
    assert shared < keys["mitigations_once"] < keys["mitigations"]


def test_figures_share_the_trainings_that_they_have_in_common():
    runs = {}
    for name in ("fig3", "fig5"):
        trials = list_trials(load_sweep(f"configs/sweeps.py:{name}"), "small", 1)
        runs[name] = {plan(trial).tasks[0].key for trial in trials}
    assert runs["fig3"] < runs["fig5"]


def test_the_paper_scale_is_the_papers_recipe():
    trials = list_trials(load_sweep("configs/sweeps.py:fig3"), "full", 1)
    assert {trial.config for trial in trials} == {
        "configs/imagenette.py",
        "configs/laion10k.py",
    }
    for trial in trials:
        module = importlib.import_module(f"configs.{trial.config[8:-3]}")
        config = module.get_config()
        config.update_from_flattened_dict(dict(trial.train))
        assert (config.train.steps, config.train.batch_size) == (100_000, 16)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_strength_of_the_sweep_of_mitigations_is_one_that_can_be(preset):
    for trial in list_trials(load_sweep("configs/sweeps.py:mitigations"), preset, 1):
        file, _, argument = trial.config.partition(":")
        module = importlib.import_module(f"configs.{file[8:-3]}")
        config = module.get_config(*([argument] if argument else []))
        changes = {**dict(trial.train), **dict(trial.evaluate)}
        config.update_from_flattened_dict(changes)
        with_mitigations(config)  # refuses what cannot be
