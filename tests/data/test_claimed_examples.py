"""A run goes on, and is evaluated, with the images that it began with."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from etils import epath
from PIL import Image

from configs import tiny
from copymit.checkpoint import open_checkpoints, save_checkpoint
from copymit.config import claim_workdir
from copymit.data.dataset import claim_examples, load_dataset, read_duplication
from copymit.evaluation.subject import open_finished, open_run
from copymit.evaluation.subject.record import write_record


@pytest.fixture
def folder(tmp_path, rng):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def config(folder):
    config = tiny.get_config()
    config.data.update(source=str(folder), num_examples=0, num_heldout=4)
    config.data.caption_style = "fixed"
    return config


@pytest.fixture
def workdir(tmp_path, config):
    """A run that began, and has a checkpoint."""
    workdir = epath.Path(tmp_path) / "run"
    claim_workdir(workdir, config)
    claim_examples(workdir, load_dataset(config.data, config.seed))
    with open_checkpoints(workdir) as checkpoints:
        save_checkpoint(checkpoints, 3, {"params": {"x": jnp.zeros(2)}}, {"step": 3})
    return workdir


def test_the_same_images_may_be_claimed_again(workdir, config):
    dataset = load_dataset(config.data, config.seed)
    claim_examples(workdir, dataset)
    table = read_duplication(workdir, dataset).to_pandas()
    assert table["example_id"].tolist() == dataset.example_ids
    assert table["duplicated"].sum() == dataset.duplication.duplicated.sum()


def test_an_image_that_was_added_is_named_and_nothing_is_overwritten(
    workdir, config, folder
):
    before = (workdir / "duplication.parquet").read_bytes()
    Image.new("RGB", (8, 8)).save(folder / "new.png")
    message = r"was trained on: 1 images added \('new\.png'\)\. Put them back"
    with pytest.raises(ValueError, match=message):
        claim_examples(workdir, load_dataset(config.data, config.seed))
    with pytest.raises(ValueError, match=message):
        open_run(workdir, None, None)
    assert (workdir / "duplication.parquet").read_bytes() == before


def test_an_image_that_is_gone_is_named(workdir, config, folder):
    name = pd.read_parquet(workdir / "duplication.parquet")["example_id"][0]
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"1 images gone \('{name}'\)"):
        open_run(workdir, None, None)


def test_another_duplication_of_the_same_images_is_refused(workdir, config):
    dataset = load_dataset(config.data, config.seed)
    weights = dataset.duplication.weights[::-1]
    other = dataset._replace(duplication=dataset.duplication._replace(weights=weights))
    with pytest.raises(ValueError, match="other images are duplicated"):
        claim_examples(workdir, other)


def test_a_run_that_never_began_is_named(workdir):
    (workdir / "duplication.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="holds no training run that began"):
        open_run(workdir, None, None)


def test_an_evaluation_of_a_run_is_opened_with_the_settings_it_was_made_with(
    workdir, config
):
    config.eval.update(num_generations=7, embedders=("pixels_16",))
    config.mitigation.apply = ("RTI",)
    made = open_run(workdir, config, "mitigated")
    made.out.mkdir(parents=True)
    write_record(made, "")
    (workdir / "checkpoints" / "3").rmtree()
    again = open_finished(made.out)
    assert (again.settings, again.identity) == (made.settings, made.identity)
    assert (again.title, again.settings["step"]) == (made.title, 3)


def test_captions_that_changed_beside_the_images_are_told(config, folder, workdir):
    for image in folder.glob("*.png"):
        image.with_suffix(".txt").write_text("a photo")
    run = workdir.parent / "captioned"
    run.mkdir()
    config.data.caption_style = "instance"
    claim_examples(run, load_dataset(config.data, config.seed))
    claim_examples(run, load_dataset(config.data, config.seed))
    (folder / "03.txt").write_text("another photo")
    with pytest.raises(ValueError, match=r"captions beside the images .*put them back"):
        claim_examples(run, load_dataset(config.data, config.seed))
