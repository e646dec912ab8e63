"""What train.py and evaluate.py leave behind, as design and README promise it."""

import json
import re

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs import tiny
from copymit.config import read_record
from copymit.embedding.image_set import reader_by_id
from copymit.embedding.store import load_embeddings
from copymit.evaluation.artefacts import open_artefacts
from copymit.evaluation.subject import open_run
from copymit.metrics import read_metrics

EVAL = tiny.get_config().eval


def test_a_run_records_its_settings_and_where_they_come_from(finished, programs):
    record = read_record(finished.workdir)
    assert record["config"]["train"]["steps"] == finished.last_step
    assert record["config"]["model"]["unet"]["block_out_channels"] == [32]
    assert record["command"][1:] == [*programs.flags, f"--workdir={finished.workdir}"]
    assert record["packages"]["jax"] == jax.__version__
    assert {"git_commit", "python"} <= record.keys()


def test_a_run_records_what_was_duplicated(finished):
    table = pd.read_parquet(finished.workdir / "duplication.parquet")
    assert list(table) == ["example_id", "weight", "duplicated", "caption_count"]
    assert table["example_id"].nunique() == len(table) == 12
    assert sorted(table["weight"]) == [1] * 9 + [4] * 3
    assert (table["duplicated"] == (table["weight"] == 4)).all()
    assert (table["caption_count"] >= 1).all()


def test_a_run_reports_every_step_in_both_formats(finished):
    assert np.isfinite(finished.losses()).all()
    for metrics in read_metrics(finished.workdir):
        assert {
            "grad_norm",
            "param_norm",
            "learning_rate",
            "steps_per_second",
            "images_per_second",
            "data_wait_share",
        } <= metrics.keys()
        assert 0 <= metrics["data_wait_share"] <= 1
    (events,) = finished.workdir.glob("events.*")
    assert b"data_wait_share" in events.read_bytes()


def test_a_run_keeps_its_last_checkpoint_and_a_grid_of_samples(finished):
    assert finished.checkpoints() == [finished.last_step]
    checkpoint = finished.workdir / "checkpoints" / str(finished.last_step)
    items = {path.name for path in checkpoint.iterdir()}
    assert {"params", "ema", "optimizer", "position"} <= items
    position = json.loads((checkpoint / "position" / "metadata").read_text())
    assert set(position.values()) == {finished.last_step}
    (grid,) = (finished.workdir / "samples").iterdir()
    assert Image.open(grid).size == (8 * 16, 2 * 16)  # twelve pictures, eight a row


def test_an_evaluation_keeps_its_prompts_and_generations(finished):
    ids = [f"{i:06d}" for i in range(EVAL.num_generations)]
    lines = (finished.out / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line) for line in lines]
    assert [p["id"] for p in prompts] == ids
    assert {"prompt", "prompt_used", "seed", "guidance_scale"} <= prompts[0].keys()
    pictures = finished.pictures()
    assert sorted(pictures) == [f"{i}.png" for i in ids]
    assert {image.shape for image in pictures.values()} == {(16, 16, 3)}


def test_an_evaluation_keeps_its_embeddings_and_matches(finished):
    artefacts = open_artefacts(open_run(finished.workdir, None, None))
    # What is chosen for images of 16 px.
    for embedder in ("efficientnet_lite0", "pixels"):
        for images, count in (("generations", 12), ("references", 12), ("heldout", 8)):
            found = load_embeddings(artefacts.store(embedder, images))
            assert len(found.ids) == len(found.features) == count
            assert embedder.split("_")[0] in found.protocol.lower()
    matches = pd.read_parquet(finished.out / "matches.parquet")
    assert list(matches) == ["generation", "rank", "reference", "similarity"]
    assert set(matches["generation"]) == {f"{i:06d}" for i in range(12)}
    table = pd.read_parquet(finished.workdir / "duplication.parquet")
    assert set(matches["reference"]) <= set(table["example_id"])
    assert sorted(matches["rank"].unique()) == list(range(11))
    falling = matches.groupby("generation")["similarity"].is_monotonic_decreasing
    assert falling.all()


def test_the_scores_have_the_documented_keys(finished):
    scores = json.loads((finished.out / "scores.json").read_text())
    for key in (
        "dataset_similarity",
        "similarity_mean",
        "similarity_p75",
        "similarity_p90",
        "similarity_p95",
        "similarity_above_0.5",
        "background_dataset_similarity",
        "background_similarity_mean",
        "heldout_dataset_similarity",
        "similarity_to_prompted",
        "prompted_image_hits",
        "pixels_dataset_similarity",
    ):
        low, high = scores[f"{key}_ci95"]
        assert low <= scores[key] <= high, key
    # None where no generation is nearest to such an image.
    assert {"similarity_to_duplicated", "similarity_to_unduplicated"} <= scores.keys()
    assert scores["dataset_similarity"] == scores["similarity_p95"]
    assert scores["fd_efficientnet_lite0"] > 0
    assert "fid" not in scores  # that name is Inception's
    assert {"precision", "recall", "density", "coverage"} <= scores.keys()
    assert {"complexity_entropy_pearson", "complexity_entropy_pvalue"} <= scores.keys()
    assert scores["search_recall"] == 1
    assert scores["num_generations"] == scores["num_references"] == 12
    assert scores["num_heldout"] == 8
    assert scores["settings"]["train.steps"] == finished.last_step
    assert scores["settings"]["step"] == finished.last_step


def test_the_scores_say_what_a_perfect_copy_would_measure(finished):
    subject = open_run(finished.workdir, None, None)
    reconstructions, read = subject.reconstructions(), reader_by_id(subject.references)
    assert sorted(reconstructions.ids) == sorted(subject.references.ids)

    def centred(image):
        pixels = jax.image.resize(image.astype(np.float32), (32, 32, 3), "bilinear")
        return np.asarray(pixels - pixels.mean()).ravel()

    pairs = [
        (centred(reconstructions.read(i)), centred(read(image_id)))
        for i, image_id in enumerate(reconstructions.ids)
    ]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    scores = json.loads((finished.out / "scores.json").read_text())
    assert scores["num_reconstructions"] == 12
    # Features are kept in half precision.
    expected = pytest.approx(np.mean(cosines), abs=2e-3)
    assert scores["pixels_reconstruction_similarity_mean"] == expected
    low, high = scores["reconstruction_similarity_mean_ci95"]
    assert low <= scores["reconstruction_similarity_mean"] <= high <= 1.001


def test_the_report_stands_alone(finished):
    page = (finished.out / "report.html").read_text()
    assert "full duplication x4" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    figures = {path.name for path in (finished.out / "figures").iterdir()}
    assert {"histogram.png", "loss.png"} <= figures
