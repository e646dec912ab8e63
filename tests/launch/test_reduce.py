"""A finished run shrinks to its results, and nothing that is open is lost by it."""

import pandas as pd
import pytest

from launch.claims import Claims
from launch.collect import collect
from launch.pool import find_products
from launch.reduce import reduce_runs, reopen
from launch.trials import plan, unique_tasks
from tests.launch.fake_sweep import make_trials, run_fake
from tests.launch.pictured import write_pairs
from tests.launch.test_collect import sweep


def add_artefacts(evaluation):
    """What a real evaluation leaves, and a checkpoint."""
    checkpoint = evaluation.parents[1] / "checkpoints" / "9"
    checkpoint.mkdir(parents=True)
    (checkpoint / "params").write_bytes(bytes(1_000))
    (evaluation / "generations").mkdir()
    (evaluation / "generations" / "000000.png").write_bytes(bytes(1_000))
    write_pairs(evaluation)


def states(tasks, root):
    by_key = {task.key: task for task in tasks}
    versions = Claims(str(root)).read(by_key)
    return {key for key, there in versions.items() if there.record} | find_products(
        by_key, versions, str(root)
    )


@pytest.fixture
def reduced(tmp_path):
    plans = [plan(trial) for trial in make_trials(2, 2)]
    tasks = unique_tasks(plans)
    run_fake(tasks, tmp_path)
    for made in plans:
        add_artefacts(tmp_path / made.scores)
    before = pd.read_parquet(collect(sweep, plans, str(tmp_path), "before")[0][0])
    by_key = {task.key: task for task in tasks}
    assert len(reduce_runs(by_key, set(by_key), str(tmp_path))) == 2
    return tmp_path, plans, before


def test_what_is_collected_stays(reduced):
    root, plans, before = reduced
    files, missing = collect(sweep, plans, str(root), "after")
    assert not missing
    columns = [name for name in before if name != "task_seconds"]
    pd.testing.assert_frame_equal(pd.read_parquet(files[0])[columns], before[columns])


def test_checkpoints_and_images_go_and_the_pairs_stay(reduced):
    root, plans, _ = reduced
    assert not list(root.glob("runs/*/checkpoints"))
    evaluation = root / plans[0].scores
    assert not (evaluation / "generations").exists()
    assert not (evaluation / "report.html").exists()
    assert len(list((evaluation / "pairs").iterdir())) == 24


def test_nothing_is_run_again_for_what_is_done(reduced):
    root, plans, _ = reduced
    tasks = unique_tasks(plans)
    reopen(tasks, states(tasks, root), str(root))
    assert set(run_fake(tasks, root).values()) == {"done"}
    starts = [path.read_text().split() for path in root.glob("runs/*/starts")]
    assert starts == []  # they went with the rest, and no program has begun


def test_another_evaluation_of_a_reduced_run_trains_it_again(reduced):
    root, plans, _ = reduced
    trial = plans[0].trial
    other = plan(trial._replace(name="more", evaluate={"eval.guidance_scale": 2.0}))
    tasks = unique_tasks([*plans, other])
    reopen(tasks, states(tasks, root), str(root))
    assert set(run_fake(tasks, root).values()) == {"done"}
    starts = [path.read_text().split() for path in root.glob("runs/*/starts")]
    assert starts == [["train", other.scores.rpartition("/")[2]]]
    assert (root / other.scores / "scores.json").exists()


def test_a_detection_of_a_reduced_run_has_its_evaluation_made_again(reduced):
    root, plans, _ = reduced
    detection = plan(plans[0].trial._replace(name="d", detector="sharpness"))
    tasks = unique_tasks([detection])
    reopen(tasks, states(tasks, root), str(root))
    assert set(run_fake(tasks, root).values()) == {"done"}
    assert (root / detection.scores / "report.html").exists()  # made again


def test_a_run_with_an_open_evaluation_is_left_alone(tmp_path):
    trial = make_trials(1, 1)[0]
    other = trial._replace(name="more", evaluate={"eval.guidance_scale": 2.0})
    plans = [plan(trial), plan(other)]
    tasks = {task.key: task for task in unique_tasks(plans)}
    run_fake(list(plans[0].tasks), tmp_path)
    done = {task.key for task in plans[0].tasks}
    assert reduce_runs(tasks, done, str(tmp_path)) == []


def test_a_pool_reduces_each_run_when_it_is_done(tmp_path):
    plans = [plan(trial) for trial in make_trials(2, 2)]
    tasks = {task.key: task for task in unique_tasks(plans)}
    seen = []
    standing = run_fake(
        list(tasks.values()),
        tmp_path,
        num_workers=1,
        on_done=lambda done: seen.append(reduce_runs(tasks, done, str(tmp_path))),
    )
    assert set(standing.values()) == {"done"}
    assert sorted(run for runs in seen for run in runs) == sorted(
        made.tasks[0].workdir for made in plans
    )
