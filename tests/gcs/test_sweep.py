"""A sweep in a faulty bucket, by two pools: its data, runs, records and figures."""

import io
import re

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

SWEEP = """
from configs.sweeps_types import Curves, Score, Trial, draws

@draws(Curves("factor", Score("similarity", ("dataset_similarity",)), "factor"))
def duplication(preset, seeds):
    for factor in (2, 4):
        train = {"data.duplication_factor": factor}
        labels = {"factor": factor, "seed": 0}
        yield Trial(f"x{factor}", "configs/tiny.py", train, {}, labels)
"""


@pytest.fixture(scope="module")
def words(programs, faulty_bucket, prepared, tmp_path_factory):
    """The command line of the sweep."""
    file = tmp_path_factory.mktemp("sweep") / "mine.py"
    file.write_text(SWEEP)
    settings = [flag.removeprefix("--config.") for flag in programs.flags[1:]]
    settings += [f"data.source={prepared}", "eval.embedders=('pixels',)"]
    settings += ["eval.quality_embedders=()", "eval.num_generations=8"]
    settings += ["train.sample_every_steps=0", "train.checkpoint_every_steps=9"]
    return (
        "-m",
        "launch.sweep",
        f"--sweep={file}:duplication",
        f"--workdir={faulty_bucket.root}/sweep",
        "--claim_secs=1800",  # a busy machine is slow
        *(f"--override={setting}" for setting in settings),
    )


@pytest.fixture(scope="module")
def swept(programs, faulty_bucket, words):
    """What two pools said that ran the sweep together."""
    pools = [programs.start(*words, **faulty_bucket.environment) for _ in range(2)]
    return [programs.finish(pool) for pool in pools]


def test_two_pools_run_each_task_once(swept):
    said = "".join(swept)
    for what in ("started", "done"):
        tasks = re.findall(rf"(\S+ (?:train|eval)\S*): {what}", said)
        assert len(tasks) == len(set(tasks)) == 4
    assert "taken over" not in said


def test_the_logs_of_the_programs_are_kept(swept, faulty_bucket):
    logs = [
        faulty_bucket.read(path).decode()
        for path in faulty_bucket.list(f"{faulty_bucket.root}/sweep/runs")
        if path.endswith("/launch/train.log")
    ]
    assert len(logs) == 2
    assert all("step 9/9" in log for log in logs)


def test_status_table_and_figure_come_from_the_bucket(
    swept, programs, faulty_bucket, words
):
    # The pools have made them, too, both when nothing was left to do.
    collected, status = (
        programs.start(*words, what, **faulty_bucket.environment)
        for what in ("--collect", "--status")
    )
    assert "2 trials: 2 done" in programs.finish(status)
    name = f"{faulty_bucket.root}/sweep/duplication"
    for said in (*swept, programs.finish(collected)):
        assert [line for line in said.splitlines() if line.startswith(name)] == [
            f"{name}.parquet",
            f"{name}.md",
            f"{name}.png",
            f"{name}.html",
        ]
    table = pd.read_parquet(io.BytesIO(faulty_bucket.read(f"{name}.parquet")))
    assert list(table["factor"]) == [2, 4]
    assert table["dataset_similarity"].notna().all()
    assert b"| factor | seeds | similarity |" in faulty_bucket.read(f"{name}.md")
    assert faulty_bucket.read(f"{name}.png").startswith(b"\x89PNG")
    page = faulty_bucket.read(f"{name}.html").decode()
    pictures = re.findall(r'src="(runs/[^"]*)"', page)
    assert pictures
    assert all(
        faulty_bucket.read(f"{faulty_bucket.root}/sweep/{path}")[:2] == b"\xff\xd8"
        for path in pictures
    )
