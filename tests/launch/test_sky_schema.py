"""SkyPilot takes the task file. In an environment of its own: make sky-test."""

import copy
from pathlib import Path

import pytest
import yaml

sky = pytest.importorskip(
    "sky", reason="SkyPilot needs an environment of its own: make sky-test"
)

TASK = yaml.safe_load((Path(__file__).parents[2] / "launch" / "sky.yaml").read_text())


def task(config, **environment):
    return sky.Task.from_yaml_config(copy.deepcopy(config), [*environment.items()])


def test_the_task_asks_for_one_slice_that_is_given_back():
    (asked,) = task(TASK, WORKDIR="gs://b/x").resources
    assert str(asked.cloud) == "GCP"
    assert asked.accelerators == {"tpu-v5litepod-16": 1}
    assert asked.autostop_config.enabled
    assert asked.autostop_config.down
    assert not asked.use_spot  # left to --use-spot
    assert asked.job_recovery["recover_on_exit_codes"] == [143]


def test_the_runtime_version_is_not_the_one_that_skypilot_would_choose():
    config = copy.deepcopy(TASK)
    args = config["resources"].pop("accelerator_args")
    (asked,) = task(config, WORKDIR="gs://b/x").resources
    assert asked.accelerator_args["runtime_version"] != args["runtime_version"]


def test_without_a_working_directory_nothing_starts():
    with pytest.raises(ValueError, match="WORKDIR"):
        task(TASK)


@pytest.mark.parametrize("section", ["autostop", "job_recovery", "accelerator_args"])
def test_a_misspelt_setting_is_refused(section):
    config = copy.deepcopy(TASK)
    config["resources"][f"{section}s"] = config["resources"].pop(section)
    with pytest.raises(ValueError, match=f"{section}s"):
        task(config, WORKDIR="gs://b/x")
