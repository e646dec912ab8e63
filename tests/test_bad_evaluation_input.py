"""Bad input of the evaluation: one clear error each, which names the culprit and the way
out, before anything is made or removed."""

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import common, tiny
from copymit.checkpoint import open_checkpoints, save_checkpoint
from copymit.config import claim_workdir
from copymit.data.dataset import load_dataset
from copymit.data.duplication import duplication_table
from copymit.evaluation import generate
from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_pair, open_run


@pytest.fixture
def config():
    config = tiny.get_config()
    config.data.num_examples = 4
    config.data.num_heldout = 0
    return config


def save_image(path, rng, size=16):
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def workdir(config, monkeypatch, tmp_path):
    """A working directory as a training leaves it at step 3, but without a model."""
    monkeypatch.setattr(generate, "make_model", lambda *_: None)
    claim_workdir(tmp_path, config)
    with open_checkpoints(tmp_path) as checkpoints:
        save_checkpoint(checkpoints, 3, {"params": {"x": jnp.zeros(2)}}, {"step": 3})
    dataset = load_dataset(config.data, config.seed)
    counts = dataset.source.caption_counts[dataset.indices]
    table = duplication_table(dataset.example_ids, dataset.duplication, counts)
    pq.write_table(table, tmp_path / "duplication.parquet")
    return tmp_path


def test_a_working_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no training run\. Train"):
        open_run(tmp_path, None, None)


def test_a_run_without_a_checkpoint_is_named(config, tmp_path):
    claim_workdir(tmp_path, config)
    with pytest.raises(ValueError, match="holds no checkpoint yet: train first"):
        open_run(tmp_path, None, None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_generations", 0, "num_generations=0: nothing to evaluate"),
        ("prompts", "heldout", "eval.prompts='heldout' needs data.num_heldout"),
        ("prompts", "all", "eval.prompts='all' is not known"),
        ("sampler", "magic", "eval.sampler='magic' is not known"),
        ("num_inference_steps", 2000, "num_inference_steps=2000 must lie between"),
        ("timestep_spacing", "odd", "timestep_spacing='odd' is not known"),
        ("embedders", ("magic",), "eval.embedders=.*magic.*efficientnet_lite0, pixels"),
        ("embedders", ("sscd_288",), r"sscd_288 needs .*eval.weights.sscd_disc_mixup"),
        ("quality_embedders", ("inception_clean",), "eval.weights.inception=PATH"),
        ("search", "magic", "eval.search='magic' is not known"),
        ("num_neighbors", 0, "eval.num_neighbors=0 must be at least 1"),
        ("batch_size", 0, "eval.batch_size=0 must be at least 1"),
    ],
)
def test_a_wrong_value_of_the_eval_section_is_named_before_anything_is_removed(
    name, value, message, config, workdir
):
    earlier = workdir / "eval" / "3" / "generations" / "000000.png"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"made by an earlier evaluation")
    config.eval[name] = value
    with pytest.raises(ValueError, match=message):
        run_stages(open_run(workdir, config, None))
    assert earlier.exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "memorised_prompts",
            "gone.txt",
            "detection.memorised_prompts='gone.txt' does",
        ),
        ("other_prompts", __file__, "set eval.detection.memorised_prompts"),
        ("memorised_similarity", float("nan"), "memorised_similarity=nan must be"),
        ("num_prompts", 0, "num_prompts=0 must be at least 1"),
    ],
)
def test_wrong_settings_of_the_detection_are_named(
    name, value, message, config, workdir
):
    config.eval.detection[name] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_stages(open_run(workdir, config, None), ["detect"])


def test_a_mitigation_in_training_is_refused_where_only_generation_is_left(
    config, workdir
):
    config.mitigation.apply = ("RT",)
    with pytest.raises(
        ValueError, match=r"train\.random_tokens=0\.1 acts in training.*tokens \(RTI"
    ):
        open_run(workdir, config, None)
    config.mitigation.apply = ("RTI",)
    assert open_run(workdir, config, None).run.config.mitigation.generate.random_tokens


def test_an_unknown_stage_is_named_beside_the_known_ones(workdir):
    with pytest.raises(ValueError, match="generate,embed,search,score,detect,report"):
        run_stages(open_run(workdir, None, None), ["generate", "judge"])
    assert not (workdir / "eval").exists()


@pytest.fixture
def folders(tmp_path):
    """Returns a function that opens the folders `made` and `trained`."""
    rng = np.random.default_rng(0)
    for name in ("made", "trained"):
        (tmp_path / name).mkdir()
        save_image(tmp_path / name / "0.png", rng)

    def open_both():
        paths = [str(tmp_path / name) for name in ("made", "trained")]
        return open_pair(*paths, tmp_path / "audit", common.get_config().eval, None)

    return open_both


def test_generations_of_several_sizes_are_counted(folders, tmp_path):
    save_image(tmp_path / "made" / "1.png", np.random.default_rng(1), size=24)
    with pytest.raises(ValueError, match=r"2 sizes \(1 of 16 x 16, 1 of 24 x 24\)"):
        folders()


def test_generations_of_several_short_sides_are_refused(folders, tmp_path):
    Image.new("RGB", (16, 24)).save(tmp_path / "made" / "0.png")
    Image.new("RGB", (24, 20)).save(tmp_path / "made" / "1.png")
    way_out = r"2 sizes \(1 of 16 x 24, 1 of 24 x 20\).*eval\.resolution"
    with pytest.raises(ValueError, match=way_out):
        folders()


@pytest.mark.parametrize("name", ["made", "trained"])
def test_an_empty_folder_is_named(name, folders, tmp_path):
    (tmp_path / name / "0.png").unlink()
    with pytest.raises(ValueError, match=f"no images in .*{name}"):
        folders()


def test_a_missing_folder_of_references_is_named(folders, tmp_path):
    (tmp_path / "trained" / "0.png").unlink()
    (tmp_path / "trained").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*trained"):
        folders()


def test_a_corrupt_generation_is_named(folders, tmp_path):
    (tmp_path / "made" / "1.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"image '1\.png' is not a readable"):
        folders()
