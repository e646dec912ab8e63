"""A working directory belongs to one run, and says with which settings."""

import json
import sys

import pytest
from etils import epath

from configs import common
from copymit.config import cache_folder, claim_workdir, flatten, read_record


@pytest.fixture
def config():
    return common.get_config()


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path) / "runs" / "first"


def test_the_record_holds_all_settings_and_what_ran_them(config, workdir):
    claim_workdir(workdir, config)
    record = json.loads((workdir / "config.json").read_text())
    assert record.keys() == {
        "config",
        "files",
        "command",
        "git_commit",
        "python",
        "packages",
    }
    assert flatten(record["config"]) == flatten(config.to_dict())
    assert record["command"] == sys.argv
    assert record["python"] == sys.version.split()[0]
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= record["packages"].keys()
    assert record == read_record(workdir)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_nested_settings_become_dotted_names():
    nested = {"a": 1, "b": {"c": (1, 2), "d": {"e": None}}, "f": {}}
    assert flatten(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


def test_the_same_config_may_claim_its_workdir_again(config, workdir):
    claim_workdir(workdir, config)
    claim_workdir(workdir, common.get_config())
    assert read_record(workdir)["config"]["seed"] == 0


def test_another_config_is_refused_with_the_settings_that_differ(config, workdir):
    claim_workdir(workdir, config)
    other = common.get_config()
    other.seed = 3
    other.data.duplication_factor = 9
    other.model.unet.block_out_channels = (32, 64)
    with pytest.raises(ValueError) as failure:
        claim_workdir(workdir, other)
    message = str(failure.value)
    assert str(workdir) in message
    assert "seed (there 0, now 3)" in message
    assert "data.duplication_factor (there 5, now 9)" in message
    assert "[64, 128, 192], now [32, 64]" in message
    assert "train.learning_rate" not in message
    assert "another --workdir" in message
    assert read_record(workdir)["config"]["seed"] == 0  # nothing was overwritten


def test_a_setting_that_the_earlier_run_did_not_know_is_named(config, workdir):
    claim_workdir(workdir, config)
    with config.unlocked():
        config.data.novelty = 1
    with pytest.raises(ValueError, match=r"data.novelty \(there 'unset', now 1\)"):
        claim_workdir(workdir, config)


def test_what_does_not_change_the_parameters_may_change(config, workdir):
    claim_workdir(workdir, config)
    config.eval.guidance_scale = 3.0
    config.mesh.fsdp = 4
    config.data.num_threads = 7
    config.data.num_workers = 1
    config.train.log_every_steps = 1
    config.train.checkpoint_every_steps = 2
    config.train.keep_checkpoints = 5
    config.train.sample_every_steps = 9
    claim_workdir(workdir, config)
    assert read_record(workdir)["config"]["eval"]["guidance_scale"] == 3.0


@pytest.mark.parametrize(
    "name", ["data", "model", "diffusion", "train", "mitigation", "seed"]
)
def test_every_other_section_is_fixed(config, workdir, name):
    """One setting of each, changed to something else of its type."""
    claim_workdir(workdir, config)
    changes = {
        "data": {"data.caption_dropout": 0.2},
        "model": {"model.text_encoder.train": False},
        "diffusion": {"diffusion.prediction_type": "v_prediction"},
        "train": {"train.batch_size": 8},
        "mitigation": {"mitigation.train.multiple_captions": True},
        "seed": {"seed": 1},
    }[name]
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        claim_workdir(workdir, config)


def test_a_run_with_a_constant_learning_rate_may_be_made_longer(config, workdir):
    claim_workdir(workdir, config)
    config.train.steps = 20_000
    claim_workdir(workdir, config)
    assert read_record(workdir)["config"]["train"]["steps"] == 20_000


def test_a_run_whose_learning_rate_knows_its_end_may_not(config, workdir):
    config.train.learning_rate_schedule = "cosine"
    claim_workdir(workdir, config)
    config.train.steps = 20_000
    with pytest.raises(ValueError, match=r"train.steps \(there 10000, now 20000\)"):
        claim_workdir(workdir, config)


def test_only_one_of_several_hosts_writes_but_all_check(config, workdir):
    claim_workdir(workdir, config, writer=False)
    assert not workdir.exists()
    claim_workdir(workdir, config)
    config.seed = 1
    with pytest.raises(ValueError, match="seed"):
        claim_workdir(workdir, config, writer=False)


@pytest.mark.parametrize(
    ("setting", "file"),
    [
        ("data.captions", "captions.json"),
        ("data.manifest", "manifest.csv"),
        ("data.source", "dataset_info.json"),
    ],
)
def test_a_file_whose_content_has_changed_is_named(
    config, workdir, tmp_path, setting, file
):
    path = tmp_path / file
    path.write_text("before")
    named = str(tmp_path) if setting == "data.source" else str(path)
    config.update_from_flattened_dict({setting: named})
    claim_workdir(workdir, config)
    claim_workdir(workdir, config)
    path.write_text("after")
    with pytest.raises(ValueError, match=rf"{setting} \(the content of .* has changed"):
        claim_workdir(workdir, config)
    path.write_text("before")
    claim_workdir(workdir, config)


def test_a_directory_without_a_run_is_named_with_the_way_out(workdir):
    with pytest.raises(
        FileNotFoundError, match=r"holds no training run.*--generations"
    ):
        read_record(workdir)


def test_a_broken_record_is_named(config, workdir):
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text('{"config": ')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        claim_workdir(workdir, config)


def test_a_kill_while_the_record_is_written_leaves_the_old_one(
    config, workdir, monkeypatch
):
    claim_workdir(workdir, config)

    def write_half_and_die(path, data):
        path.open("wb").write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(type(workdir), "write_bytes", write_half_and_die)
    config.eval.seed = 5
    with pytest.raises(KeyboardInterrupt):
        claim_workdir(workdir, config)
    monkeypatch.undo()
    assert read_record(workdir)["config"]["eval"]["seed"] == 0
    claim_workdir(workdir, config)
    assert read_record(workdir)["config"]["eval"]["seed"] == 5


def test_runs_share_a_directory_of_caches_when_told_to():
    config = common.get_config()
    workdir = epath.Path("gs://bucket/sweep/trial")
    for named, found in {
        "": "gs://bucket/sweep/trial/cache",
        "../cache": "gs://bucket/sweep/cache",
        "../../all": "gs://bucket/all",
    }.items():
        config.data.cache_dir = named
        assert str(cache_folder(workdir, config)) == found
