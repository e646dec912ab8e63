"""A run that an older copymit trained, as it lay there, is opened by today's."""

import shutil
from pathlib import Path

import pytest
from etils import epath

from configs import demo
from copymit.config import claim_workdir, read_config
from copymit.evaluation.subject.trained import open_run
from copymit.mitigation.registry import active, with_mitigations
from copymit.training.loop import defaults_of_older_runs

RECORDED = Path(__file__).parents[1] / "recorded" / "run_of_2026_11_25"


@pytest.fixture
def workdir(tmp_path):
    """The demo's run, with a checkpoint of which nothing but the name is read."""
    shutil.copytree(RECORDED, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "2500"
    step.mkdir(parents=True)
    (step / "_CHECKPOINT_METADATA").write_text("{}")
    return tmp_path / "run"


def test_its_images_captions_and_duplicates_are_those_that_it_was_trained_on(workdir):
    # What was drawn is held against the table that the run left.
    subject = open_run(workdir, None, None)
    assert subject.title == "full duplication x10"
    assert len(subject.duplication) == 48
    assert (subject.duplication["weight"] == 10).sum() == 12


def test_its_settings_are_completed_and_nothing_that_is_off_is_taken_for_on(workdir):
    noted = read_config(workdir).mitigation.generate
    assert noted.noise_norm_weight == 0.05  # a default of then, of what is off
    config = open_run(workdir, None, None).run.config
    for section in ("train", "generate"):
        assert active(section, config.mitigation[section].to_dict()) == []


def test_its_training_goes_on_by_the_command_that_began_it(workdir):
    config = with_mitigations(demo.get_config())
    claim_workdir(epath.Path(workdir), config, defaults_of_older_runs())
