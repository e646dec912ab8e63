"""The decision on every generation, from images to scores, tables and pictures."""

import functools
import json
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from copymit.data.images import decode_image, resize_and_crop
from copymit.embedding import registry
from copymit.embedding.pixels import make_pixels
from copymit.evaluation import evaluate, score_stage
from copymit.evaluation.subject import open_finished
from copymit.report.verdict import answer

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
SIZE_PX = 16


@pytest.fixture(autouse=True)
def no_quality(monkeypatch):
    """Quality takes longest, and nothing here depends on it."""
    found = {"warnings": []}
    monkeypatch.setattr(score_stage, "score_quality", lambda *_: dict(found))


def draw(rng, count, spread=1.0, centre=None):
    """Draws pictures of a few colours; of a class, around its centre."""
    coarse = rng.normal(size=(count, 4, 4, 3)) * spread
    if centre is not None:
        coarse = coarse + centre
    fine = 127 + 40 * coarse.repeat(4, axis=1).repeat(4, axis=2)
    return fine.clip(0, 255).astype(np.uint8)


def altered(images, rng):
    noisy = images * 0.9 + 10 + rng.normal(0, 8, images.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def audit(folder, generations, references, **settings):
    settings = {"embedders": ("pixels",), "batch_size": 64} | settings
    return evaluate(generations, references, workdir=folder, **settings)


def test_ten_equal_images_among_210_are_found(tmp_path, rng):
    """The page said that there was no sign of copying: a percentile sees no 5 %."""
    trained = draw(rng, 400)
    generations = np.concatenate([draw(rng, 200), trained[:10]])
    result = audit(tmp_path, generations, trained)
    assert answer(result.scores) == (
        "10 of 210 generations are copies of 10 training images (10 exact); false "
        "discovery rate 1 %"
    )
    copies = result.generations[result.generations["grade"] == "exact"]
    assert sorted(copies["generation"]) == [f"{i:06d}" for i in range(200, 210)]
    assert (copies["copy_of"] == copies["nearest_reference"]).all()
    assert (copies["tile_l2"] == 0).all()


def test_images_of_one_class_that_were_never_trained_on_are_no_copies(tmp_path, rng):
    """This model copies, the page said of 50 held-out photos of one class of ten."""
    centres = rng.normal(size=(10, 4, 4, 3))
    # The first class is nearer to itself than the others.
    spreads = [0.7, *9 * [1.2]]
    trained = np.concatenate(
        [draw(rng, 60, *pair) for pair in zip(spreads, centres, strict=True)]
    )
    result = audit(tmp_path, draw(rng, 50, 0.7, centres[0]), trained)
    scores = result.scores
    assert scores["similarity_mean"] > scores["background_similarity_p75"]
    assert scores["num_copies"] == 0
    assert scores["missed_share_upper"] == pytest.approx(0.0582, abs=1e-4)
    # And altered copies in the same class are found.
    copies = altered(trained[:5], rng)
    both = np.concatenate([draw(rng, 50, 0.7, centres[0]), copies])
    found = audit(tmp_path, both, trained)
    grades = found.generations.set_index("generation")["grade"].sort_index()
    assert (grades[-5:] == "near copy").all()
    assert (grades[:-5] == "none").all()


def test_duplicates_in_the_training_set_hide_no_copies(tmp_path, rng):
    """Whether this model copies is unclear, the page said: so near are duplicates, too."""
    trained = draw(rng, 300)
    trained = np.concatenate([trained, trained[:40], altered(trained[20:50], rng)])
    generations = np.concatenate([draw(rng, 150), altered(trained[:50], rng)])
    result = audit(tmp_path, generations, trained)
    grades = result.generations.set_index("generation")["grade"].sort_index()
    assert (grades[150:] == "near copy").mean() > 0.95
    assert (grades[:150] == "none").all()
    assert result.scores["copied_images"] <= 50
    assert result.scores["copy_null_duplicates"] >= 60


@pytest.mark.slow
def test_ten_equal_photos_among_others_are_found_and_held_out_tench_are_not(tmp_path):
    archive = SHARED_DATA / "imagenette2-224.tar"
    if not archive.is_file():
        pytest.skip("needs ../shared/data/imagenette2-224.tar")
    trained, heldout = [], {True: [], False: []}
    with tarfile.open(archive) as tar:
        for number, member in enumerate(m for m in tar if m.isfile()):
            is_tench = "n01440764" in member.name
            if "/val/" in member.name or (is_tench or number % 8 == 0):
                data = tar.extractfile(member).read()
                image = resize_and_crop(decode_image(data, member.name), 64)
                into = heldout[is_tench] if "/val/" in member.name else trained
                into.append(image)
    trained = np.stack(trained)
    settings = {"embedders": ("efficientnet_lite0", "pixels")}
    tench = audit(tmp_path, np.stack(heldout[True]), trained, **settings)
    assert tench.scores["num_copies"] <= 1
    made = np.concatenate([np.stack(heldout[False])[:200], trained[:10]])
    scores = audit(tmp_path, made, trained, **settings).scores
    assert scores["num_exact_copies"] == 10
    assert scores["num_copies"] <= 11


@pytest.fixture
def easily_confused(monkeypatch):
    """A descriptor to which every image with noise is another one."""
    name = "efficientnet_lite0"
    made = make_pixels("pixels")._replace(
        name=name,
        protocol="confused by noise",
        apply=lambda _, images: jnp.sin(
            images.reshape(len(images), -1).astype(jnp.float32)
        ),
    )
    entry = registry._EMBEDDERS[name]._replace(make=lambda _: made)
    monkeypatch.setitem(registry._EMBEDDERS, name, entry)
    return name


def test_noise_that_hides_copies_from_the_descriptor_hides_none_from_pixels(
    tmp_path, rng, easily_confused
):
    """Their pixels agreed, and they were in no number of copies."""
    trained = draw(rng, 300)
    made = np.concatenate([draw(rng, 80), altered(trained[:20], rng)])
    audit_by = functools.partial(audit, tmp_path, made, trained)
    alone = audit_by(embedders=(easily_confused,), quality_embedders=("pixels",))
    assert alone.scores["num_copies"] == alone.scores["num_copies_by_pixels"] == 0
    assert alone.scores["num_pixels_alone"] == 0  # nothing finds the images to compare
    both = audit_by(embedders=(easily_confused, "pixels"))
    table = both.generations.set_index("generation").sort_index()
    assert (table["grade"][80:] == "near copy").all()
    assert (table["copy_of"][80:] == [f"{i:06d}" for i in range(20)]).all()
    assert (table["tile_l2_ratio"][80:] < 0.4).all()
    # What cannot be a copy is not compared with further pictures.
    assert table["tile_l2_ratio"][:80].isna().mean() > 0.9
    assert (table["grade"][:80] == "none").all()
    assert both.scores["num_copies_by_pixels"] == both.scores["num_near_copies"] == 20


def test_heldout_images_are_the_null_where_they_are_given(tmp_path, rng):
    trained = draw(rng, 150)
    np.save(tmp_path / "heldout.npy", np.concatenate([draw(rng, 120), trained[:5]]))
    np.save(tmp_path / "trained.npy", trained)
    np.save(tmp_path / "made.npy", draw(rng, 20))
    places = [str(tmp_path / f"{name}.npy") for name in ("made", "trained", "heldout")]
    result = audit(tmp_path, places[0], places[1], heldout=places[2])
    assert result.scores["copy_null"] == "heldout"
    # Held-out images that were trained on after all say nothing.
    assert result.scores["copy_null_size"] == 120
    assert result.scores["copy_null_duplicates"] == 5
    again = open_finished(result.directory)
    assert len(again.heldout.ids) == 125
    without = audit(tmp_path, *places[:2])
    assert without.scores["copy_null"] == "training images"
    assert without.directory != result.directory


def test_images_of_one_colour_copy_nothing_and_repeat_nothing(tmp_path, rng):
    black = np.zeros((4, SIZE_PX, SIZE_PX, 3), np.uint8)
    trained = np.concatenate([draw(rng, 120), black[:1]])
    result = audit(tmp_path, np.concatenate([draw(rng, 10), black]), trained)
    assert result.scores["num_copies"] == result.scores["num_pixels_alone"] == 0
    assert result.scores["num_repeated_generations"] == 0


def test_repeated_generations_are_counted_and_named(tmp_path, rng):
    made = draw(rng, 12)[[0, 1, 2, 2, 3, 2]]
    prompts = ["a", "b", "c", "d", "e", "c"]
    result = audit(tmp_path, made, draw(rng, 120), prompts=prompts)
    repeats = result.generations.set_index("generation")["repeats"].sort_index()
    assert repeats.fillna("").tolist() == ["", "", "000002", "000002", "", "000002"]
    assert result.scores["num_repeated_generations"] == 3
    assert result.scores["num_repeated_across_prompts"] == 3


def test_one_training_image_and_one_generation_are_enough_for_an_answer(tmp_path, rng):
    image = draw(rng, 2)
    same = audit(tmp_path, image[:1], image[:1])
    assert same.scores["num_exact_copies"] == 1
    other = audit(tmp_path, image[1:], image[:1])
    assert other.scores["num_copies"] == 0
    assert other.scores["copy_threshold"] is None


def save(folder, pictures):
    folder.mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return str(folder)


def test_pairs_lie_side_by_side_under_safe_names_and_never_outlive_scores(
    tmp_path, rng
):
    trained = draw(rng, 120)
    made = save(tmp_path / "made", {"=cmd() x": trained[3], "b": trained[7]})
    places = (
        made,
        save(tmp_path / "trained", {str(i): t for i, t in enumerate(trained)}),
    )
    prompts = ["=HYPERLINK(1)", "b"]
    result = audit(tmp_path, *places, prompts=prompts, copy_pictures=1)
    folder = result.directory / "copies"
    names = sorted(path.name for path in folder.iterdir())
    assert names[1:] == ["copies.csv", "page_001.html"]
    pairs = {"0001-exact-cmd-x-png.png": trained[3], "0001-exact-b-png.png": trained[7]}
    pair = np.asarray(Image.open(folder / names[0]))
    for half in (pair[:, :SIZE_PX], pair[:, -SIZE_PX:]):
        np.testing.assert_array_equal(half, pairs[names[0]])
    table = pd.read_csv(folder / "copies.csv").set_index("generation")
    assert table["prompt"].to_dict() == {
        "'=cmd() x.png": "'=HYPERLINK(1)",
        "b.png": "b",
    }
    assert table["copy_of"].to_dict() == {"'=cmd() x.png": "3.png", "b.png": "7.png"}
    assert table["picture"].fillna("").tolist() == [names[0], ""]
    # The generations change: no picture of before is left.
    for name in ("=cmd() x", "b"):
        Image.fromarray(draw(rng, 1)[0]).save(tmp_path / "made" / f"{name}.png")
    again = audit(tmp_path, *places, prompts=prompts, copy_pictures=1)
    assert again.directory == result.directory
    assert not folder.exists()
    assert json.loads((again.directory / "scores.json").read_text())["num_copies"] == 0


def test_pages_of_pairs_start_blurred_as_the_report_does(tmp_path, rng):
    """They ignored `eval.blur`, since the score stage wrote them."""
    trained = draw(rng, 120)
    made = np.concatenate([draw(rng, 20), trained[:2]])
    for blur in (True, False):  # the second time the report stage alone runs
        result = audit(tmp_path, made, trained, blur=blur)
        page = (result.directory / "copies" / "page_001.html").read_text()
        for text in (page, result.report.read_text()):
            assert ('id="blur" autocomplete="off" checked>' in text) == blur
        assert page.count("<img") == 2
    assert result.generations["picture"].notna().sum() == 2


def test_the_same_images_give_the_same_decision_and_bytes(tmp_path, rng):
    trained = draw(rng, 150)
    made = np.concatenate([draw(rng, 20), altered(trained[:5], rng)])
    first, second = (audit(tmp_path / name, made, trained) for name in "ab")
    for name in ("scores.json", "copies/copies.csv", "generations.csv"):
        assert (first.directory / name).read_bytes() == (
            second.directory / name
        ).read_bytes()


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_false_discovery_rate_that_is_none_is_refused(tmp_path, rng, rate):
    with pytest.raises(ValueError, match=r"eval\.false_discovery_rate=.* between 0"):
        audit(tmp_path, draw(rng, 2), draw(rng, 3), false_discovery_rate=rate)
