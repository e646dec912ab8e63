"""Weights & Biases is told what metrics.jsonl holds, and ends no training."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from copymit.metrics import MetricWriter, read_metrics
from copymit.wandb_run import check_wandb


class Wandb(types.ModuleType):
    """The part of wandb's interface that is used; records what it is told."""

    class Error(Exception):
        pass

    class Image:
        def __init__(self, pixels):
            self.shape = pixels.shape

    def __init__(self):
        super().__init__("wandb")
        self.begun = []
        self.told = []
        self.ended = 0
        self.refuses = False

    def init(self, **options):
        if self.refuses:
            raise self.Error("No API key configured")
        self.begun.append(options)
        return self

    def log(self, values, *, step):
        if self.refuses:
            raise BrokenPipeError("the service has ended")
        self.told.append((step, values))

    def finish(self):
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def writer(workdir: Path, first_step: int = 0) -> MetricWriter:
    return MetricWriter(epath.Path(workdir), first_step, "copying", {"train.steps": 9})


def test_scalars_and_images_are_told_under_their_steps(wandb, tmp_path):
    metrics = writer(tmp_path)
    metrics.write(1, {"loss": 0.5})
    metrics.write_image(1, "generations", np.zeros((4, 6, 3), np.uint8))
    metrics.write(2, {"loss": 0.25, "copies": 3.0})
    metrics.close()
    (begun,) = wandb.begun
    assert begun["project"] == "copying"
    assert begun["name"] == tmp_path.name
    assert begun["config"] == {"train.steps": 9}
    (first, image, second) = wandb.told
    assert first == (1, {"loss": 0.5})
    assert image[1]["generations"].shape == (4, 6, 3)
    assert second == (2, {"loss": 0.25, "copies": 3.0})
    assert wandb.ended == 1


def test_a_resumed_training_goes_on_in_the_same_run_and_another_has_its_own(
    wandb, tmp_path
):
    for place, first_step in (("a", 0), ("a", 5), ("b", 0)):
        (tmp_path / place).mkdir(exist_ok=True)
        writer(tmp_path / place, first_step).close()
    ids = [options["id"] for options in wandb.begun]
    assert ids[0] == ids[1] != ids[2]
    assert {options["resume"] for options in wandb.begun} == {"allow"}


def test_what_fails_while_training_is_said_once_and_metrics_go_on(
    wandb, tmp_path, caplog
):
    metrics = writer(tmp_path)
    wandb.refuses = True
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 0.5})
    metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert caplog.text.count("nothing more is reported to Weights & Biases") == 1


def test_who_is_not_logged_in_is_told_three_ways_out(wandb, tmp_path):
    wandb.refuses = True
    with pytest.raises(
        ConnectionError, match=r"No API key configured; log in .*offline"
    ):
        writer(tmp_path)


def test_without_a_project_nobody_is_told(wandb, tmp_path):
    MetricWriter(epath.Path(tmp_path), 0).close()
    assert wandb.begun == []


def test_a_project_without_the_package_is_refused_by_what_to_install(monkeypatch):
    check_wandb("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        check_wandb("copying")


def test_wandb_itself_takes_what_it_is_told(tmp_path, monkeypatch):
    """Offline, and where it is installed: what the fake stands in for."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    metrics = writer(tmp_path)
    metrics.write(1, {"loss": 0.5})
    metrics.write_image(1, "generations", np.zeros((4, 6, 3), np.uint8))
    metrics.close()
    wandb.teardown()  # waits for its process, which writes
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"loss" in content
    assert (tmp_path / "wandb_id.txt").read_bytes() in content
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))
