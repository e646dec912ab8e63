"""Copying measured while training: known generations give known scalars."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from copymit.data.dataset import load_dataset
from copymit.embedding.headline import deciding
from copymit.embedding.image_set import examples_as_images
from copymit.embedding.registry import make_embedder
from copymit.evaluation import online
from copymit.evaluation.online import choose_prompted, make_copy_monitor
from copymit.generator import Generated


@pytest.fixture
def config(request):
    config = tiny.get_config()
    config.data.num_examples = getattr(request, "param", 12)
    config.train.evaluate_every_steps = 3
    config.train.evaluate_prompts = 6
    config.eval.embedders = ("pixels",)
    return config


@pytest.fixture
def monitored(config, monkeypatch, tmp_path):
    """Returns a function: images per prompted row -> the monitor's scalars."""
    dataset = load_dataset(config.data, config.seed)
    images = examples_as_images(
        "references", dataset.source, dataset.indices, config.data.resolution
    )
    chosen = choose_prompted(dataset.duplication.duplicated, 6)

    def measure(make, finite=None):
        made = np.stack([make(images, int(row)) for row in chosen])
        monkeypatch.setattr(
            online,
            "make_generate",
            lambda *_: (
                lambda *_: Generated(
                    jnp.asarray(made),
                    {},
                    jnp.ones(len(made), bool)
                    if finite is None
                    else jnp.asarray(finite),
                )
            ),
        )
        return make_copy_monitor(config, None, None, dataset, tmp_path)({}, 3)

    measure.duplicated = dataset.duplication.duplicated
    return measure


def test_a_model_that_returns_the_prompted_images_copies_them_all(monitored):
    values = monitored(lambda images, row: images.read(row))
    assert values["online_dataset_similarity"] == pytest.approx(1, abs=1e-6)
    assert values["online_prompted_image_hits"] == 1
    assert values["online_prompted_image_hits_duplicated"] == 1


def test_a_model_that_returns_other_training_images_hits_none(monitored):
    values = monitored(lambda images, row: images.read((row + 1) % 12))
    assert values["online_similarity_mean"] == pytest.approx(1, abs=1e-6)
    assert values["online_prompted_image_hits"] == 0


def test_hits_are_counted_apart_for_duplicated_images(monitored):
    def make(images, row):
        return images.read(row if monitored.duplicated[row] else (row + 1) % 12)

    values = monitored(make)
    assert values["online_prompted_image_hits_duplicated"] == 1
    assert values["online_prompted_image_hits_unduplicated"] == 0


def test_noise_is_like_no_training_image(monitored, rng):
    shape = (16, 16, 3)
    values = monitored(lambda *_: rng.integers(0, 256, shape, dtype=np.uint8))
    assert values["online_dataset_similarity"] < 0.4


@pytest.mark.parametrize("config", [60], indirect=True)
def test_copies_are_counted_where_training_images_tell_how_near_others_are(
    monitored, rng
):
    copies = monitored(lambda images, row: images.read(row + row % 2))
    assert copies["online_copied_share"] == 1
    noise = monitored(lambda *_: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert noise["online_copied_share"] == 0
    rows = iter([True, False, False] * 2)
    some = monitored(
        lambda images, row: images.read(row) if next(rows) else 255 - images.read(row)
    )
    assert some["online_copied_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("config", [60], indirect=True)
def test_what_the_descriptor_does_not_see_pixels_call_while_training_too(
    monitored, config, monkeypatch
):
    """As the evaluation does: the bound on copies is of the same share."""

    def blind(name, weights):
        made = make_embedder(name, weights)
        if name == "pixels":
            return made
        return made._replace(
            name=name,
            protocol="sees nothing",
            apply=lambda params, images: jax.random.normal(
                jax.random.key(int(images.shape[0])), (len(images), 8)
            ),
        )

    monkeypatch.setattr(online, "make_embedder", blind)
    config.eval.embedders = ("pixels_16", "pixels")
    assert deciding(config.eval.embedders) == ["pixels_16"]
    monkeypatch.setattr(online, "deciding", lambda names: list(names))
    copies = monitored(lambda images, row: images.read(row))
    assert copies["online_prompted_image_hits"] < 1
    assert copies["online_copied_share"] == 1


@pytest.mark.parametrize("config", [60], indirect=True)
def test_images_of_one_colour_are_no_copies_while_training(monitored, monkeypatch):
    """Any two of them correlate and agree tile by tile."""
    read = examples_as_images

    def with_a_blank_one(*arguments):
        images = read(*arguments)
        return images._replace(read=lambda i: images.read(i) * np.uint8(i != 59))

    monkeypatch.setattr(online, "examples_as_images", with_a_blank_one)
    rows = iter([True, False] * 3)
    values = monitored(
        lambda images, row: images.read(row) * np.uint8(next(rows)),
    )
    assert values["online_copied_share"] == 0.5


@pytest.mark.parametrize("config", [60], indirect=True)
@pytest.mark.parametrize("candidates", [0, 3])
def test_pixels_call_nothing_while_training_that_no_tile_was_compared_of(
    monitored, config, monkeypatch, candidates
):
    asked = []

    def noted(name, weights):
        asked.append(name)
        return make_embedder("pixels", weights)._replace(name=name)

    monkeypatch.setattr(online, "make_embedder", noted)
    config.eval.embedders = ("efficientnet_lite0", "pixels")
    config.eval.tile_l2_candidates = candidates
    monitored(lambda images, row: images.read(row))
    assert asked == ["efficientnet_lite0", "pixels"][: 2 if candidates else 1]


@pytest.mark.parametrize(
    ("embedders", "expected"),
    [
        (("sscd_288", "pixels"), ["sscd_288", "pixels"]),
        (("sscd_288", "inception", "pixels_16", "pixels"), ["sscd_288", "pixels_16"]),
        (("pixels", "sscd_288"), ["pixels"]),
        (("sscd_288",), ["sscd_288"]),
    ],
)
def test_the_descriptor_and_pixels_decide(embedders, expected):
    assert deciding(embedders) == expected


def test_few_training_images_do_not_tell_copies(monitored, caplog):
    values = monitored(lambda images, row: images.read(row))
    assert "online_copied_share" not in values
    assert "12 training images are too few to tell how near they are" in caplog.text


def test_images_that_were_not_finite_are_in_no_number_but_their_own(monitored, caplog):
    """Black ones, of NaN, were like no training image and lowered all numbers."""
    finite = np.arange(6) % 2 == 0
    of_row = iter(finite)
    values = monitored(
        lambda images, row: images.read(row) * np.uint8(next(of_row)), finite
    )
    assert values["online_num_not_finite"] == 3
    assert values["online_similarity_mean"] == pytest.approx(1, abs=1e-6)
    assert values["online_prompted_image_hits"] == 1
    assert "3 of 6 images had latents or pixels that are not finite" in caplog.text
    none = monitored(lambda images, row: images.read(row), np.zeros(6, bool))
    assert none == {"online_num_not_finite": 6}


@pytest.mark.parametrize(
    ("num_duplicated", "total", "count", "expected"),
    [
        (5, 100, 10, 5),
        (2, 100, 10, 2),
        (0, 100, 10, 0),
        (9, 12, 10, 7),
        (12, 12, 10, 10),
    ],
)
def test_half_of_the_prompts_are_of_duplicated_images(
    num_duplicated, total, count, expected, rng
):
    duplicated = np.zeros(total, bool)
    duplicated[rng.choice(total, num_duplicated, replace=False)] = True
    chosen = choose_prompted(duplicated, count)
    assert len(set(chosen)) == min(count, total)
    assert duplicated[chosen].sum() == expected
