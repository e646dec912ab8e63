"""Configs are found by name and path; a wheel has them, and claims no name of others."""

import subprocess
import sys
from pathlib import Path

import pytest

from copymit import project
from copymit.project import PROJECT, config_names, find_config


def test_a_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("demo") == str(PROJECT / "configs" / "demo.py")
    assert find_config("demo:control") == f"{PROJECT / 'configs' / 'demo.py'}:control"
    assert find_config("configs/tiny.py") == str(PROJECT / "configs" / "tiny.py")


def test_ones_own_config_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    Path("configs").mkdir()
    Path("configs/demo.py").touch()
    assert find_config("mine.py:x:y") == "mine.py:x:y"
    assert find_config("demo") == "configs/demo.py"
    with pytest.raises(FileNotFoundError, match=r"no config mine \(give a path"):
        find_config("mine")


@pytest.mark.parametrize(
    "given", ["dmeo", "configs/dmeo.py", "elsewhere/dmeo.py:control"]
)
def test_a_typo_is_answered_with_the_config_that_was_meant(given):
    with pytest.raises(FileNotFoundError, match=r"did you mean demo\?"):
        find_config(given)


def test_only_files_that_make_a_config_are_offered():
    assert {"demo", "tiny", "laion10k"} <= set(config_names())
    assert "sweeps" not in config_names()


def test_a_wheel_carries_the_programs_inside_the_package(tmp_path):
    """Built as pip does, but for the archive."""
    command = ["setup.py", "-q", "egg_info", f"--egg-base={tmp_path}"]
    command += ["build_py", f"--build-lib={tmp_path / 'lib'}"]
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True)
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["copymit"]
    shipped = tmp_path / "lib" / "copymit" / "shipped"
    assert not list(shipped.rglob("__pycache__"))
    code = (
        "import copymit.project as p; print(p.PROJECT); p.use_project();"
        "import configs.demo, train;"
        "from launch.trials import command_lines, list_trials, load_sweep, plan;"
        "print(configs.__path__[0], train.__file__);"
        "trials = list_trials(load_sweep('configs/sweeps.py:fig3'), 'small', 1);"
        "print(command_lines([plan(trials[0])], 'runs')[-1][0])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "lib",
        env={"PATH": "", "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert said[:2] == [str(shipped), f"{shipped}/configs {shipped}/train.py"]
    assert said[2].startswith("copymit train --config=configs/demo.py --workdir=runs/")
    assert " && copymit evaluate --config=configs/demo.py " in said[2]


def test_the_project_of_a_checkout_is_its_root():
    assert Path(project.__file__).parents[1] == PROJECT
    assert (PROJECT / "setup.py").exists()
