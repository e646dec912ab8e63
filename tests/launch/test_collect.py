"""Scores of all trials become a table, a parquet and a figure."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from configs.sweeps_types import (
    Bars,
    Clusters,
    Curves,
    Scatter,
    Score,
    Tradeoff,
    draws,
)
from launch.collect import (
    collect,
    read_points,
)
from launch.figures.tradeoff import pareto_front
from launch.trials import plan, unique_tasks
from tests.launch.fake_sweep import (
    SIMILARITY,
    make_plans,
    make_tasks,
    make_trials,
    run_fake,
)

QUALITY = Score("FID", ("fid", "fd_efficientnet_lite0"))
BASELINE = Score("background", ("background_dataset_similarity",))
PANELS = (
    Curves("factor", SIMILARITY, "factor", baseline=BASELINE, log=True),
    Bars("factor", QUALITY, "factor"),
    Tradeoff(QUALITY, SIMILARITY, "factor"),
    Bars("factor", Score("CLIP", ("clip_score",)), "factor"),
    Clusters(),
    Scatter("nearest_entropy", "entropy", Score("r", ("complexity_entropy_pearson",))),
)
sweep = draws(*PANELS)(lambda preset, seeds: iter(make_trials()))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The directory of a finished sweep of 12 trials, not to be changed."""
    root = tmp_path_factory.mktemp("swept")
    run_fake(make_tasks(), root)
    return root


@pytest.fixture
def finished(swept, tmp_path):
    """A copy of it."""
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_every_trial_is_in_the_table_and_the_figure_is_drawn(finished, figures):
    files, missing = collect(sweep, make_plans(), str(finished), "fake")
    assert missing == []
    assert [file.rpartition(".")[2] for file in files] == [
        "parquet",
        "md",
        "png",
        "html",
    ]
    table = pd.read_parquet(finished / "fake.parquet")
    assert sorted(table["trial"]) == sorted(t.name for t in make_trials())
    assert table.groupby("factor").size().tolist() == [3, 3, 3, 3]
    assert table["dataset_similarity_ci95_low"].tolist() == [0.4] * 12
    lines = (finished / "fake.md").read_text().splitlines()
    # The usual scores are there by the names of the panels, and once.
    columns = "factor | seeds | similarity | background | FID | loss at the end"
    assert lines[2] == f"| {columns} |"
    assert lines[4].startswith("| 1 | 3 | 0.510 [0.510, 0.510] | 0.450 ")
    picture = image.imread(finished / "fake.png")
    assert picture[..., :3].std() > 0.05
    assert not figures[0].get_suptitle()
    assert not list(finished.glob("*.partial"))


def test_prompts_of_duplicated_images_and_of_others_have_columns_of_their_own(finished):
    groups = {
        "prompted_duplicated_similarity_mean": 0.8,
        "prompted_unduplicated_similarity_mean": 0.2,
    }
    for made in make_plans():
        path = finished / made.scores / "scores.json"
        scores = json.loads(path.read_text()) | {"similarity_mean": 0.3}
        none = made.trial.labels["factor"] == 1
        path.write_text(json.dumps(scores | ({} if none else groups)))
    collect(sweep, make_plans(), str(finished), "fake")
    lines = (finished / "fake.md").read_text().splitlines()
    assert lines[2].endswith(
        "| similarity, duplicated | similarity, others | loss at the end |"
    )
    # Of a set without duplicates, all are the others.
    assert " | 0.300 [0.300, 0.300] |  | 0.300 [0.300, 0.300] | 0.5" in lines[4]
    assert " | 0.800 [0.800, 0.800] | 0.200 [0.200, 0.200] | 0.5" in lines[5]


def test_a_seed_that_did_not_learn_is_named(finished):
    """Half of a study was of models that had not, and its table did not show it."""
    plans = make_plans()
    losses = {1: (0.64, 0.68, 0.65), 2: (0.31, 0.51, 0.48)}
    for made in plans:
        ends = losses.get(made.trial.labels["factor"], (0.5,) * 3)
        path = finished / made.tasks[0].workdir / "metrics.jsonl"
        lines = [{"step": 1, "loss": 9.0}, {"loss": ends[made.trial.labels["seed"]]}]
        path.write_text("\n".join(map(json.dumps, lines)))
    collect(sweep, plans, str(finished), "fake")
    text = (finished / "fake.md").read_text()
    assert text.endswith("look at their curves: 2 (0.310 to 0.510).\n")
    assert "| 0.657 [0.605, 0.708] |" in text
    path.unlink()  # a run that another program made
    collect(sweep, plans, str(finished), "fake")


def test_what_is_missing_is_said(finished, figures):
    plans = [*make_plans(), plan(make_trials()[0]._replace(name="new", train={}))]
    _, missing = collect(sweep, plans, str(finished), "fake")
    assert missing == ["new"]
    assert figures[0].get_suptitle() == "INCOMPLETE: 1 of 13 trials lack scores"
    lines = (finished / "fake.md").read_text().splitlines()
    assert lines[2].startswith("**INCOMPLETE: 1 of 13 trials lack scores.**")
    assert "- not run yet: new" in lines


def test_a_setting_says_how_many_of_its_seeds_it_has_and_why(tmp_path):
    trials = [*make_trials(3, 3), make_trials(6, 3)[3]]
    bad = trials[1]._replace(train={**trials[1].train, "data.on_corrupt": "fail"})
    plans = [plan(trial) for trial in (trials[0], bad, *trials[2:])]
    run_fake(unique_tasks(plans[:3]), tmp_path, max_attempts=1)
    collect(sweep, plans, str(tmp_path), "fake")
    text = (tmp_path / "fake.md").read_text()
    assert "\n- exit code 1: error: no such data: x1-seed1\n" in text
    assert "\n- not run yet: x2-seed0\n" in text
    assert "| 1 | **2 of 3** | 0.510 [" in text
    assert "| 2 | **0 of 1** |  |" in text


def test_scores_of_an_evaluation_that_is_being_made_again_are_not_collected(finished):
    path = finished / f"{make_plans()[0].tasks[-1].key}.json"
    record = json.loads(path.read_text()) | {"state": "running"}
    path.write_text(json.dumps(record))
    _, missing = collect(sweep, make_plans(), str(finished), "fake")
    assert missing == [make_plans()[0].trial.name]
    assert f"- running: {missing[0]}" in (finished / "fake.md").read_text()


def test_scores_that_another_engine_left_are_collected(finished):
    for path in finished.glob("runs/*/launch/*.json"):
        path.unlink()  # another engine writes none
    _, missing = collect(sweep, make_plans(), str(finished), "fake")
    assert missing == []
    assert "task_seconds" not in pd.read_parquet(finished / "fake.parquet")


def test_nothing_to_collect_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"no trial of fake .* run the sweep first"):
        collect(sweep, make_plans(), str(tmp_path), "fake")


def test_damaged_scores_are_named(finished):
    path = finished / make_plans()[0].scores / "scores.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"scores\.json is not valid JSON"):
        collect(sweep, make_plans(), str(finished), "fake")


def test_seconds_an_image_are_collected_though_they_are_no_score(finished):
    path = finished / make_plans()[0].scores / "timings.json"
    path.write_text(json.dumps({"seconds_per_image": 0.25}))
    collect(sweep, make_plans(), str(finished), "fake")
    table = pd.read_parquet(finished / "fake.parquet")
    assert table["seconds_per_image"].dropna().tolist() == [0.25]


def test_scores_of_a_detector_are_those_of_the_detect_stage(tmp_path):
    trials = [
        trial._replace(name=f"detect-{trial.name}", detector="sharpness")
        for trial in make_trials(2, 2)
    ]
    plans = [plan(trial) for trial in trials]
    assert [task.program for task in plans[0].tasks] == [
        "train.py",
        "evaluate.py",
        "evaluate.py",
    ]
    run_fake(unique_tasks(plans), tmp_path)
    auc = Score("AUC", ("auc",))
    unseen = Score("AUC of unseen", ("unseen_auc",))
    drawn = draws(Bars("factor", auc, "factor"), columns=(auc, unseen))
    collect(drawn(lambda *_: iter(trials)), plans, str(tmp_path), "detectors")
    table = pd.read_parquet(tmp_path / "detectors.parquet")
    assert table["auc"].tolist() == [0.91, 0.91]
    assert table["unseen_auc"].tolist() == [1.0, 1.0]
    assert "| 1 | 2 | 0.910 | 1.000 |" in (tmp_path / "detectors.md").read_text()


def test_a_front_has_what_nothing_beats():
    assert pareto_front([(1, 5), (2, 4), (2, 6), (3, 4), (0, 9)]) == [4, 0, 1]


def test_where_no_prompt_is_memorised_a_detector_has_but_their_numbers(tmp_path):
    """A KeyError on the comparison that there is not ended the whole collection."""
    made = plan(make_trials(1, 1)[0]._replace(name="d", detector="sharpness"))
    run_fake(made.tasks, tmp_path)
    summary = {"num_memorised": 0, "num_unmemorised": 9, "titles": {}}
    (tmp_path / made.scores / "detection.json").write_text(json.dumps(summary))
    memorised = Score("memorised", ("num_memorised",))
    drawn = draws(Bars("factor", Score("AUC", ("auc",)), "factor"), columns=[memorised])
    _, missing = collect(drawn(lambda *_: iter(())), [made], str(tmp_path), "d")
    assert missing == []
    assert "| 1 | 1 | 0.000 |" in (tmp_path / "d.md").read_text()


def write_generations(root, made, **columns):
    """Writes what the report of a trial's evaluation would."""
    path = root / made.scores / "generations.parquet"
    pd.DataFrame(columns).to_parquet(path)


def test_points_join_generations_with_the_clusters_of_their_matches(finished):
    trial = make_trials()[0]._replace(analysis={"source": "fluent_emoji"})
    made = plan(trial)
    write_generations(
        finished, made, nearest_reference=["a", "b", "z"], similarity=[0.9, 0.5, 0.4]
    )
    (finished / made.clusters).mkdir(parents=True)
    clusters = {
        "example_id": ["a", "b", "b"],
        "kind": ["image", "image", "caption"],
        "image_similarity": [0.9, 0.95, 0.5],
        "caption_similarity": [1.0, 0.2, 1.0],
    }
    pd.DataFrame(clusters).to_parquet(finished / made.clusters / "clusters.parquet")
    points = read_points([made], str(finished), Clusters().columns)
    assert points["nearest_reference"].tolist() == ["a", "b", "z"]
    np.testing.assert_array_equal(points["caption_similarity"], [1.0, 0.2, np.nan])
    alone = read_points([made], str(finished), ["similarity"])
    assert alone["similarity"].tolist() == [0.9, 0.5, 0.4]


def test_points_are_those_of_every_trial_with_its_labels(finished):
    for made in make_plans()[:2]:
        write_generations(
            finished, made, seed=[7, 8], similarity=[0.9, 0.5], nearest_entropy=[1, 2]
        )
    points = read_points(make_plans(), str(finished), ["nearest_entropy", "similarity"])
    assert points["nearest_entropy"].tolist() == [1, 2, 1, 2]
    assert points["seed"].tolist() == [0, 0, 1, 1]  # of the trial, not of the noise
    assert read_points(make_plans(), str(finished), []).empty


def test_generations_of_an_older_copymit_are_named_with_the_way_out(finished):
    made = make_plans()[0]
    write_generations(finished, made, nearest_reference=["a"], similarity=[0.9])
    with pytest.raises(ValueError, match=r"no column 'nearest_entropy'.* delete ") as e:
        collect(sweep, make_plans(), str(finished), "fake")
    (record,) = [word for word in str(e.value).split() if word.endswith(".json")]
    assert (finished / record).exists()
