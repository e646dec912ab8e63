"""Sizes of generations: read once from headers, and no need to be square."""

import json

import numpy as np
import pytest
from PIL import Image

from copymit.data.images import ImageError
from copymit.embedding import image_set
from copymit.embedding.registry import make_embedder
from copymit.evaluation import embed_stage, score_stage
from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_finished, open_pair
from copymit.settings import evaluation_settings

SCORED = ("embed", "search", "score")


@pytest.fixture(autouse=True)
def no_quality(monkeypatch):
    """Quality takes longest, and depends on the same features as everything else."""
    found = {"warnings": []}
    monkeypatch.setattr(score_stage, "score_quality", lambda *_: dict(found))


def save(folder, *sizes):
    """Writes pictures of (width, height), coarse enough to survive resizing."""
    folder.mkdir()
    for i, (width, height) in enumerate(sizes):
        rng = np.random.default_rng([i, width])
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def audit(tmp_path):
    """Opens an audit of the folders `made` and `trained`."""

    def open_audit(workdir="audit", made="made", **settings):
        config = evaluation_settings()
        config.update({"embedders": ("pixels",), "tile_l2_candidates": 0} | settings)
        folders = (str(tmp_path / made), str(tmp_path / "trained"))
        return open_pair(*folders, tmp_path / workdir, config, "it")

    save(tmp_path / "trained", *[(32, 20)] * 6)
    return open_audit


def scores_of(subject):
    return json.loads((run_stages(subject, SCORED) / "scores.json").read_text())


def test_what_is_scored_is_opened_and_shown_without_reading_what_is_not_shown(
    audit, tmp_path, monkeypatch
):
    save(tmp_path / "made", *[(16, 16)] * 8)
    read, files = [], []
    for name in ("decode_image", "read_size"):
        function = getattr(image_set, name)
        monkeypatch.setattr(
            image_set,
            name,
            lambda data, image_id, *, name=name, function=function: (
                read.append((name, image_id))
                or files.append(data)
                or function(data, image_id)
            ),
        )
    out = run_stages(audit(), SCORED)
    assert read[:8] == [("read_size", f"{i}.png") for i in range(8)]
    assert [name for name, _ in read].count("read_size") == 8
    read.clear()
    assert (audit().size, open_finished(out).size) == (16, 16)
    assert read == []
    files.clear()
    run_stages(audit(gallery_size=2), ("report",))
    assert {name for name, _ in read} == {"decode_image"}
    assert 2 <= len(set(files)) < 8 + 6
    # Another image is another set.
    (tmp_path / "made" / "3.png").unlink()
    read.clear()
    audit()
    assert len(read) == 7


def test_pixels_that_are_corrupt_are_found_when_they_are_embedded(audit, tmp_path):
    whole = (save(tmp_path / "made", *[(16, 16)] * 3) / "1.png").read_bytes()
    (tmp_path / "made" / "1.png").write_bytes(whole[:-40])
    subject = audit()
    with pytest.raises(ImageError, match=r"1\.png.*corrupt.*--eval\.on_corrupt=skip"):
        run_stages(subject, SCORED)
    scores = scores_of(audit(on_corrupt="skip"))
    assert scores["num_skipped_generations"] == 1


def test_generations_that_are_not_square_are_compared_at_their_short_side(
    audit, tmp_path
):
    wide = save(tmp_path / "made", (24, 16), (16, 40), (16, 16), (30, 16))
    (tmp_path / "cropped").mkdir()
    subject = audit()
    for i, image_id in enumerate(subject.generations().ids):
        square = subject.generations().read(i)
        assert square.shape == (16, 16, 3)
        Image.fromarray(square).save(tmp_path / "cropped" / image_id)
        original = subject.generations().read_original(i)
        with Image.open(wide / image_id) as image:
            np.testing.assert_array_equal(original, np.asarray(image))
    scores, cropped = scores_of(subject), scores_of(audit("b", made="cropped"))
    assert scores["image_size_px"] == 16
    assert "pictures all images are resized" in scores["image_preparation"]
    assert "pictures training images are" in cropped["image_preparation"]
    assert scores["similarity_mean"] == cropped["similarity_mean"]


def test_features_of_whole_images_are_not_taken_for_those_of_cropped_ones(
    audit, tmp_path, monkeypatch
):
    def squash(image):
        return np.asarray(Image.fromarray(image).resize((16, 16)))

    monkeypatch.setattr(
        embed_stage,
        "make_embedder",
        lambda *args: make_embedder(*args)._replace(prepare=squash, any_shape=True),
    )
    save(tmp_path / "made", *[(20, 20)] * 4)
    whole = scores_of(audit())["similarity_mean"]
    fresh = scores_of(audit("fresh", resolution=20))["similarity_mean"]
    assert whole != fresh
    assert scores_of(audit(resolution=20))["similarity_mean"] == fresh
    assert scores_of(audit())["similarity_mean"] == whole
