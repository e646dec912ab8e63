"""One call from images of anyone to scores and page: planted copies, and odd sets."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from copymit.data.sources import load_source
from copymit.embedding.image_set import examples_as_images
from copymit.evaluation import evaluate, settings
from copymit.evaluation.subject import open_finished
from copymit.scores.complexity import crop_as_dcr, measure_complexity
from copymit.scores.names import look_up

SIZE_PX = 32


@pytest.fixture(scope="module")
def pictures():
    source = load_source("fluent_emoji")
    images = examples_as_images("references", source, np.arange(0, 1800, 60), SIZE_PX)
    return np.stack([images.read(i) for i in range(len(images.ids))])


def audit(tmp_path, generations, references, **settings):
    return evaluate(
        generations,
        references,
        workdir=tmp_path,
        **{"embedders": ("pixels",), "batch_size": 16} | settings,
    )


def test_copies_are_found_and_the_result_is_one_table(pictures, tmp_path):
    generations = pictures[[4, 9, 9, 20]]
    result = audit(tmp_path, generations, pictures, prompts=["a", "b", "=c", "d"])
    table = result.generations.set_index("generation").sort_index()  # all are tied
    assert table["nearest_reference"].to_dict() == {
        "000000": "000004",
        "000001": "000009",
        "000002": "000009",
        "000003": "000020",
    }
    # Float32 products of 3,072 pixels.
    np.testing.assert_allclose(table["similarity"], 1, atol=1e-5)
    np.testing.assert_allclose(table["tile_l2"], 0, atol=1e-9)
    assert table.loc["000002", "prompt"] == "=c"
    nearest = measure_complexity(map(crop_as_dcr, pictures[[4, 9, 9, 20]]))
    for name, values in nearest._asdict().items():
        assert table[f"nearest_{name}"].tolist() == values.tolist()
    assert result.scores["tile_l2_below_0.15"] == 1
    assert result.report.exists()
    card = (result.directory / "metrics_card.txt").read_text()
    assert "were not made by copymit" in card
    assert "sampler" not in card


def test_generations_equal_to_the_references_have_no_distance(pictures, tmp_path):
    scores = audit(tmp_path, pictures, list(pictures)).scores
    assert scores["dataset_similarity"] == pytest.approx(1, abs=1e-6)
    # The features of 3,000 pixels have a variance in the millions.
    assert scores["fd_pixels"] == pytest.approx(0, abs=1e-3)
    assert (scores["precision"], scores["recall"], scores["coverage"]) == (1, 1, 1)


def test_near_identical_images_of_a_prompt_count_once_in_an_audit(tmp_path, rng):
    """Ten prompts with twenty images each: the interval was less than half as wide."""
    references = rng.integers(0, 256, (30, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    blend = np.linspace(0, 1, 10)[:, None, None, None]
    noise = rng.integers(0, 256, (10, SIZE_PX, SIZE_PX, 3))
    bases = (blend * references[:10] + (1 - blend) * noise).astype(np.uint8)
    generations = np.repeat(bases, 20, axis=0) + rng.integers(
        0, 2, (200, SIZE_PX, SIZE_PX, 3), dtype=np.uint8
    )
    prompts = [f"prompt {i // 20}" for i in range(200)]
    settings = {"tile_l2_candidates": 0}
    scores = audit(
        tmp_path, generations, references, prompts=prompts, **settings
    ).scores
    low, high = scores["similarity_mean_ci95"]
    values = scores["similarity_std"] / 200**0.5
    assert scores["num_clusters"] == 10
    # A standard error of independent images, times sqrt(20), to both sides.
    assert (high - low) / (2 * 1.96 * values) == pytest.approx(20**0.5, rel=0.25)


def test_a_copied_background_is_seen_by_its_tiles_only(pictures, tmp_path, rng):
    """New foregrounds before old backgrounds: the whole image is unlike, tiles are not."""
    backgrounds = rng.integers(0, 256, (12, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    altered = backgrounds.copy()
    for i, image in enumerate(altered):
        picture = Image.fromarray(image)
        box = (11, 0, SIZE_PX, SIZE_PX)
        ImageDraw.Draw(picture).rectangle(box, fill=(20 * i, 250 - 20 * i, 90))
        altered[i] = np.asarray(picture)
    result = audit(tmp_path, altered, backgrounds, tiles=3)
    scores = result.scores
    assert scores["similarity_mean"] < 0.6
    assert scores["template_similarity_mean"] > 0.99
    assert scores["background_template_similarity_mean"] < 0.7
    assert (result.generations["template_similarity"] > 0.99).all()


def test_a_finished_evaluation_can_be_opened_and_compared_again(pictures, tmp_path):
    folders = []
    for name, images in (("made", pictures[:8]), ("trained", pictures[4:])):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folders[-1] / f"{i:02d}.png")
    result = audit(tmp_path, *map(str, folders), prompts=list("abcdefgh"))
    subject = open_finished(result.directory)
    assert subject.prompts()["prompt"].tolist() == list("abcdefgh")
    assert subject.eval.embedders == ("pixels",)
    assert subject.generations().ids == [f"{i:02d}.png" for i in range(8)]


def test_scores_of_an_older_version_are_computed_again(pictures, tmp_path, monkeypatch):
    np.save(tmp_path / "made.npy", pictures[:3])
    images = [str(tmp_path / "made.npy")] * 2
    monkeypatch.setattr(settings, "_VERSIONS", settings._VERSIONS | {"score": 1})
    directory = audit(tmp_path, *images).directory
    matches = (directory / "matches.parquet").stat().st_mtime_ns
    measured = pq.read_table(directory / "measured.parquet")
    newer = [name for name in measured.column_names if name.startswith("nearest_")]
    about = {k: v for k, v in measured.schema.metadata.items() if k != b"pandas"}
    older = measured.drop_columns(newer).replace_schema_metadata(about)
    pq.write_table(older, directory / "measured.parquet")
    assert "nearest_entropy" not in audit(tmp_path, *images).generations
    monkeypatch.undo()
    assert audit(tmp_path, *images).generations["nearest_entropy"].notna().all()
    assert (directory / "matches.parquet").stat().st_mtime_ns == matches


def test_images_that_cannot_be_read_are_skipped_counted_and_listed(pictures, tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    for i, image in enumerate(pictures):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"image '07\.png' is corrupt or truncated"):
        audit(tmp_path, pictures[:3], str(folder))
    settings = {"on_corrupt": "skip", "embedders": ("pixels", "efficientnet_lite0")}
    scores = audit(tmp_path, pictures[:3], str(folder), **settings).scores
    assert scores["num_skipped_references"] == 1
    assert scores["skipped_references"][0].startswith("07.png is corrupt")
    assert scores["num_references"] == len(pictures) - 1


def test_one_image_and_black_images_have_scores(tmp_path, pictures):
    black = np.zeros((3, SIZE_PX, SIZE_PX, 3), np.uint8)
    scores = audit(tmp_path, black[:1], pictures[:1]).scores
    assert scores["dataset_similarity"] == pytest.approx(0, abs=1e-6)
    assert "too few to measure quality" in json.dumps(scores["warnings"])
    assert "background_dataset_similarity" not in scores
    settings = {"embedders": ("pixels", "efficientnet_lite0")}
    scores = audit(tmp_path, black, black, **settings).scores
    assert scores["similarity_mean"] == pytest.approx(1, abs=1e-6)
    assert scores["efficientnet_lite0_similarity_mean"] == pytest.approx(1, abs=1e-5)


def test_black_images_among_others_are_counted_and_named_first(pictures, tmp_path):
    """As a safety checker leaves them: they were scored without a word."""
    made = pictures[:8].copy()
    made[[2, 5]] = 0
    result = audit(tmp_path, made, pictures, prompts=list("abcdefgh"))
    assert result.scores["num_blank_generations"] == 2
    assert result.scores["blank_generations"] == ["000002", "000005"]
    assert "num_blank_references" not in result.scores
    (alarm,) = result.scores["alarms"]
    assert alarm.startswith(
        "2 of 8 generations are of one colour (000002, 000005). A saf"
    )
    page = result.report.read_text()
    assert page.index(alarm) < page.index('<main id="content">')
    assert result.scores["num_generations"] == result.scores["similarity_count"] == 8


def test_generations_of_one_prompt_are_called_so(pictures, tmp_path):
    scores = audit(tmp_path, pictures[:3], pictures, prompts=["a"] * 3).scores
    assert scores["alarms"][0].startswith("All generations are of one prompt")
    assert scores["similarity_mean_ci95"] is None


def test_every_key_of_scores_is_in_readme_with_its_kind_of_interval(pictures, tmp_path):
    settings = {"embedders": ("pixels", "efficientnet_lite0"), "tiles": 2}
    scores = audit(tmp_path, pictures[:20], pictures, **settings).scores
    keys = [key for key in scores if not key.endswith("_ci95")]
    assert [key for key in keys if look_up(key) is None] == []
    told = {key for key in keys if look_up(key).score.interval}
    assert {key for key in keys if f"{key}_ci95" in scores} == told


def test_the_same_images_give_the_same_bytes(pictures, tmp_path):
    texts = []
    for name in ("first", "second"):
        directory = audit(tmp_path / name, pictures[:5], pictures).directory
        texts.append((directory / "scores.json").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embeder": ("pixels",)}, "unknown settings embeder: use some of"),
        (
            {"weights": {"sscd": "x"}},
            "unknown weights sscd: use some of clip_vit_b16",
        ),
        ({"embedders": ("sscd_288",)}, r"eval\.weights\.sscd_disc_mixup=PATH"),
        ({"prompts": ["one"]}, "1 prompts for 2 generations: give one each"),
        ({"tiles": 1}, r"eval\.tiles=1: use 0 for none"),
        ({"clip_score": "magic"}, r"eval\.clip_score='magic' is not known"),
        ({"on_corrupt": "cry"}, r"eval\.on_corrupt='cry' is not known"),
    ],
)
def test_wrong_settings_are_named(settings, message, pictures, tmp_path):
    with pytest.raises(ValueError, match=message):
        audit(tmp_path, pictures[:2], pictures[:2], **settings)
