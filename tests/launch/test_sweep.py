"""The program launch.sweep, with real programs once and with wrong command lines."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from launch import collect, sweep

ROOT = Path(__file__).parents[2]
ONE_TRIAL = """
from configs.sweeps_types import Curves, Score, Trial, draws

@draws(Curves("factor", Score("similarity", ("dataset_similarity",)), "factor"))
def one(preset, seeds):
    for seed in seeds:
        train = {"seed": seed, "train.sample_every_steps": 0}
        # As in tests/programs, so that the same is compiled.
        train |= {"model.unet.block_out_channels": (32,)}
        train |= {"model.unet.cross_attention": (False,)}
        evaluate = {"eval.embedders": ("pixels",), "eval.quality_embedders": ()}
        labels = {"factor": 4, "seed": seed}
        yield Trial(f"x4-seed{seed}", "configs/tiny.py", train, evaluate, labels)
"""


@pytest.fixture
def one_trial(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ONE_TRIAL)
    return f"--sweep={path}:one"


def test_a_real_trial_is_trained_evaluated_and_collected(tmp_path, one_trial):
    words = [one_trial, f"--workdir={tmp_path}/out", "--num_seeds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.sweep", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        f"{tmp_path}/out/one.{kind}" for kind in ("parquet", "md", "png", "html")
    ]
    table = pd.read_parquet(tmp_path / "out/one.parquet")
    assert table["trial"].tolist() == ["x4-seed0"]
    assert 0 < table["dataset_similarity"].item() <= 1
    assert "2 of 2 tasks done" in done.stderr
    page = (tmp_path / "out/one.html").read_text()
    pairs = list((tmp_path / "out").glob("runs/*/eval/*/pairs/*.jpg"))
    assert len(pairs) > 1
    assert all(path.name in page for path in pairs)
    (log,) = (tmp_path / "out").glob("runs/*/launch/train.log")
    assert "step 9/9" in log.read_text()


def test_other_engines_are_given_lines_that_can_be_counted(tmp_path, one_trial, capsys):
    words = [one_trial, f"--workdir={tmp_path}/out", "--commands"]
    assert sweep.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    start = f"python train.py --config=configs/tiny.py --workdir={tmp_path}/out/runs/"
    assert all(line.startswith(start) for line in lines)
    assert not (tmp_path / "out").exists()
    assert sweep.main([*words[:2], "--commands=--distributed"]) == 0
    assert capsys.readouterr().out.count(" --distributed") == 6


def test_what_trials_share_is_announced(tmp_path, capsys):
    words = ["--sweep=configs/sweeps.py:table_inference_mitigations", "--num_seeds=1"]
    assert sweep.main([*words, f"--workdir={tmp_path}", "--commands"]) == 0
    said = capsys.readouterr()
    shared, *trials = said.out.splitlines()
    assert "train.py" in shared
    assert "evaluate.py" not in shared
    assert all(f"{shared} && " in line for line in trials)
    assert "lines 1 to 1 are shared by several trials: finish them first" in said.err


def test_status_can_be_asked_before_the_start(tmp_path, one_trial, capsys):
    assert sweep.main([one_trial, f"--workdir={tmp_path}/out", "--status"]) == 0
    assert "3 trials: 3 pending" in capsys.readouterr().out


def test_a_table_that_lacks_trials_is_announced(
    tmp_path, one_trial, monkeypatch, capsys
):
    found = (["one.md"], ["x4-seed1"])
    monkeypatch.setattr(collect, "collect", lambda *_: found)
    assert sweep.main([one_trial, f"--workdir={tmp_path}/out", "--collect"]) == 0
    said = capsys.readouterr()
    assert said.out == "one.md\n"
    assert "INCOMPLETE: 1 of 3 trials have no scores: x4-seed1" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--collect"], "no trial of one in"),
        (["--preset=big"], "use one of small, photos, photos_cpu, full"),
        (["--override=data.bogus=1"], "no setting 'data.bogus'"),
        (["--num_workers=0"], "--num_workers=0 must be at least 1"),
        (["--claim_secs=0"], "--claim_secs=0 must be above 0"),
        (["--max_attempts=0"], "--max_attempts=0 must be at least 1"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(
    tmp_path, one_trial, capsys, words, message
):
    assert sweep.main([one_trial, f"--workdir={tmp_path}/out", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_several_sweeps_are_collected_with_one_table_of_all(tmp_path):
    names = []
    for title in ("first", "second"):
        table = {"trial": [title], "factor": [1 if title == "first" else "one"]}
        pd.DataFrame(table).to_parquet(tmp_path / f"{title}.parquet")
        names.append(title)
    path = collect.join_tables(str(tmp_path), [*names, "third"])
    joined = pd.read_parquet(path)
    assert joined["sweep"].tolist() == names
    assert joined["factor"].tolist() == ["1", "one"]


def test_sweeps_are_listed_one_after_the_other(tmp_path, capsys):
    words = ["--sweep=configs/sweeps.py:fig5,fig3", "--num_seeds=1", "--only=factor=1"]
    assert sweep.main([*words, f"--workdir={tmp_path}/out", "--status"]) == 0
    assert "3 trials: 3 pending" in capsys.readouterr().out


def test_a_sweep_of_which_nothing_is_left_is_named(tmp_path, capsys):
    words = ["--sweep=configs/sweeps.py:fig3,unconditional", "--only=factor=1"]
    assert sweep.main([*words, f"--workdir={tmp_path}/out", "--status"]) == 0
    said = capsys.readouterr()
    assert "3 trials: 3 pending" in said.out
    assert "--only leaves no trial of unconditional" in said.err
