"""A sweep's trials are checked before anything runs, and share what they can."""

import pytest

from configs.sweeps_types import Trial, draws
from launch.trials import (
    choose_trials,
    command_lines,
    command_of,
    list_trials,
    load_sweep,
    plan,
    read_overrides,
    unique_tasks,
)
from tests.launch.fake_sweep import make_trials

TINY = Trial("a", "configs/tiny.py", {"seed": 1}, {}, {"seed": 1})


def sweep_of(*trials):
    return draws()(lambda preset, seeds: iter(trials))


def test_a_sweep_is_found_by_file_and_function():
    assert load_sweep("configs/sweeps.py:fig3").__name__ == "fig3"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("configs/sweeps.py:fig9", r"no sweep 'fig9'; it has .*fig3.*table_train"),
        ("configs/sweeps.py", r"no sweep ''; it has"),
        ("configs/absent.py:fig3", r"configs/absent\.py does not exist"),
        ("configs/tiny.py:get_config", r"decorate one with draws"),
    ],
)
def test_a_sweep_that_is_not_there_is_named(reference, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_sweep(reference)


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([TINY, TINY], r"several trials are called 'a'"),
        ([TINY._replace(train={"train.step": 1})], r"trial a: .* 'train.step'"),
        ([TINY._replace(evaluate={"eval.bogus": 1})], r"trial a: .* 'eval.bogus'"),
        ([TINY._replace(train={"seed": "x"})], r"trial a: .*config.seed=x"),
        ([TINY._replace(name="../a")], r"trial '\.\./a': use letters"),
        ([TINY._replace(config="configs/absent.py")], r"absent\.py does not exist"),
        ([], r"no trial with --preset=small"),
    ],
)
def test_a_trial_that_cannot_run_is_refused_at_once(trials, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list_trials(sweep_of(*trials), "small", 1)


def test_presets_and_seeds_are_checked():
    with pytest.raises(ValueError, match="use one of small, photos, photos_cpu, full"):
        list_trials(sweep_of(TINY), "medium", 1)
    with pytest.raises(ValueError, match="num_seeds=0"):
        list_trials(sweep_of(TINY), "small", 0)


def test_equal_trainings_are_one_task_and_evaluations_follow_it():
    other = TINY._replace(name="b", evaluate={"eval.guidance_scale": 2.0})
    tasks = unique_tasks([plan(TINY), plan(other)])
    training, *evaluations = tasks
    assert training.program == "train.py"
    assert [task.program for task in evaluations] == ["evaluate.py"] * 2
    assert all(task.after == (training.key,) for task in evaluations)
    assert len({task.product for task in evaluations}) == 2


def test_names_say_what_varies_and_other_settings_give_other_names():
    a, b = plan(TINY), plan(TINY._replace(train={"seed": 2}))
    assert "seed-1" in a.scores
    assert a.tasks[0].workdir != b.tasks[0].workdir
    long = TINY._replace(train={"data.source": "gs://bucket/" + 90 * "x"})
    assert all(len(part) < 120 for part in plan(long).scores.split("/"))
    assert "gs:" not in plan(long).scores


@pytest.mark.parametrize(
    ("settings", "equal"),
    [
        ({}, {"data.duplication_factor": 10}),
        ({"eval.guidance_scale": 2}, {"eval.guidance_scale": 2.0}),
        ({"data.classes": "('a', 'b')"}, {"data.classes": ("a", "b")}),
        ({"data.random_flip": "true"}, {"data.random_flip": True}),
    ],
)
def test_settings_that_come_to_the_same_share_a_run(settings, equal):
    demo = TINY._replace(config="configs/demo.py")
    trials = [
        demo._replace(name=name, train={"seed": 0, **train})
        for name, train in (("a", settings), ("b", equal))
    ]
    a, b = (plan(t) for t in list_trials(sweep_of(*trials), "small", 1))
    assert a.tasks == b.tasks
    assert "seed-0" in a.scores


def test_equal_evaluations_of_one_run_are_one_task():
    evaluate = {"eval.guidance_scale": 2.0}
    again = {**evaluate, "eval.sampler": "ddim"}
    trials = [TINY._replace(evaluate=evaluate)]
    trials += [TINY._replace(name="b", evaluate=again)]
    made = [plan(trial) for trial in list_trials(sweep_of(*trials), "small", 1)]
    assert len(unique_tasks(made)) == 2


def test_a_published_model_keeps_a_setting_that_its_training_settings_change():
    changed, own = {"eval.guidance_scale": 2.0}, {"eval.guidance_scale": 7.5}
    trial = Trial("a", "configs/common.py", changed, own, model="m")
    (task,) = plan(list_trials(sweep_of(trial), "small", 1)[0]).tasks
    assert task.arguments.count("--config.eval.guidance_scale=7.5") == 1


def test_settings_reach_the_program_that_reads_them():
    overrides = read_overrides(["data.source=gs://b/d", "eval.num_generations=8"])
    (trial,) = list_trials(sweep_of(TINY), "small", 1, overrides)
    training, evaluation = plan(trial).tasks
    assert "--config.data.source=gs://b/d" in training.arguments
    assert "--config.eval.num_generations=8" in evaluation.arguments
    assert not [a for a in evaluation.arguments if "data.source" in a]


def test_values_are_written_as_the_programs_read_them():
    train = {"data.random_flip": False, "mitigation.apply": ("GN=0.1",), "seed": 3}
    arguments = plan(TINY._replace(train=train)).tasks[0].arguments
    assert "--config.data.random_flip=false" in arguments
    assert "--config.mitigation.apply=('GN=0.1',)" in arguments


def test_a_published_model_is_evaluated_and_not_trained():
    (task,) = plan(TINY._replace(model="stable-diffusion-v1-4")).tasks
    assert "--model=stable-diffusion-v1-4" in task.arguments
    assert "--config.seed=1" in task.arguments
    assert task.after == ()


def test_the_analysis_of_a_data_set_is_made_once():
    trials = [
        TINY._replace(name=name, train={"seed": i}, analysis={"source": "fluent_emoji"})
        for i, name in enumerate("ab")
    ]
    programs = [task.program for task in unique_tasks([plan(t) for t in trials])]
    assert sorted(programs) == [
        "copymit.analysis",
        *["evaluate.py"] * 2,
        *["train.py"] * 2,
    ]


def test_a_command_lies_where_the_sweep_does():
    training, _ = plan(TINY).tasks
    words = command_of(training, "gs://bucket/sweeps/", "python")
    assert words[:3] == ["python", "train.py", "--config=configs/tiny.py"]
    assert words[3].startswith("--workdir=gs://bucket/sweeps/runs/")
    analysis = training._replace(program="copymit.analysis")
    assert command_of(analysis, "x", "python")[:3] == [
        "python",
        "-m",
        "copymit.analysis",
    ]


def test_other_engines_get_a_line_for_each_trial_and_what_is_shared_first():
    alone = TINY._replace(name="alone", train={"seed": 2})
    other = TINY._replace(name="other", evaluate={"eval.guidance_scale": 2.0})
    shared, trials = command_lines([plan(t) for t in (TINY, other, alone)], "/root")
    (training,) = shared
    assert training.startswith("python train.py --config=configs/tiny.py ")
    assert [line.count(" && ") for line in trials] == [1, 1, 1]
    assert [line.startswith(training) for line in trials] == [True, True, False]
    assert all("&& python evaluate.py " in line for line in trials)
    (alone,) = command_lines([plan(TINY)], "/root", "--distributed")
    assert alone[0].count(" --distributed") == 2


def test_what_shares_an_evaluation_waits_for_it_too():
    detectors = [
        TINY._replace(name=name, detector=name) for name in ("sharpness", "norm")
    ]
    detectors += [
        detectors[0]._replace(name="a", evaluate={"eval.guidance_scale": 2.0})
    ]
    made = [plan(trial) for trial in detectors]
    trainings, evaluations, detections, trials = command_lines(made, "/root")
    assert [len(g) for g in (trainings, evaluations, detections, trials)] == [
        1,
        1,
        1,
        2,
    ]
    assert "evaluate.py" in evaluations[0]
    assert "--stages=detect" in detections[0]
    assert "--stages=detect" in trials[0]


def test_a_pair_without_a_value_is_refused():
    with pytest.raises(ValueError, match="seed is not SETTING=VALUE"):
        read_overrides(["seed"])


def test_labels_choose_trials():
    trials = {"fig3": make_trials(12, 3)}
    (chosen,) = choose_trials(trials, ["factor=1,4", "seed=2"]).values()
    assert [trial.name for trial in chosen] == ["x1-seed2", "x4-seed2"]
    with pytest.raises(
        ValueError, match=r"--only=factor=9: no trial has factor=9; there"
    ):
        choose_trials(trials, ["factor=9"])
    with pytest.raises(ValueError, match=r"no trial has steps=1; there are no such"):
        choose_trials(trials, ["steps=1"])


def test_of_several_sweeps_those_are_left_that_have_the_labels():
    trials = {"fig3": make_trials(4, 2), "other": [TINY]}
    assert list(choose_trials(trials, ["factor=2"])) == ["fig3"]
    assert list(choose_trials(trials, ["seed=1"])) == ["fig3", "other"]
    assert choose_trials(trials, []) == trials
    with pytest.raises(
        ValueError, match="--only=factor=2: no trial has factor=2; there"
    ):
        choose_trials(trials, ["factor=1", "factor=2"])


def test_an_evaluation_is_one_task_whether_or_not_its_data_is_analysed():
    """The study of photos ended in a KeyError: one of them waited for the analysis."""
    other = TINY._replace(name="b", analysis={"source": "photos"})
    for trials in ((TINY, other), (other, TINY)):
        tasks = unique_tasks(plan(trial) for trial in trials)
        assert sorted(task.program for task in tasks) == [
            "copymit.analysis",
            "evaluate.py",
            "train.py",
        ]
        known = set()
        for task in tasks:
            assert set(task.after) <= known
            known.add(task.key)
