"""Our Inception, preprocessing and distances against four published packages.

`make parity` writes the golden files (`make_golden.py`); the weights, images and features
behind them are drawn again here.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from copymit.embedding.inception import PROTOCOLS
from copymit.scores.frechet import kernel_distance
from copymit.scores.manifold import manifold_scores
from tests.parity import inputs, ours

pytestmark = pytest.mark.usefixtures("compiled_as_for_users")
GOLDEN = Path(__file__).parent / "golden"
SCORES = json.loads((GOLDEN / "scores.json").read_text())
FEATURES = inputs.feature_sets()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the weights that the golden networks had."""
    return ours.save_weights(tmp_path_factory.mktemp("inception"))


@pytest.fixture(scope="module")
def make(weights):
    """Makes each embedder once, its function compiled."""

    @functools.cache
    def make(protocol):
        return ours.make(protocol, weights)

    return make


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "inception.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("protocol", inputs.PROTOCOLS)
@pytest.mark.parametrize("size", inputs.IMAGE_SIZES)
def test_the_network_is_shown_the_same_pixels(golden, protocol, size):
    image = inputs.draw_images(*size, count=1)[0]
    _, prepare, normalise = PROTOCOLS[f"inception_{protocol}"]
    pixels = np.asarray(normalise(prepare(image)[None]))
    assert pixels.shape == (1, 299, 299, 3)
    expected = golden[f"pixels_{protocol}_{size[0]}x{size[1]}"]
    assert expected.std() > 0.3
    # Float32 positions of up to 500 pixels are rounded to 3e-5 of a pixel.
    np.testing.assert_allclose(inputs.sample_pixels(pixels), expected, atol=2e-5)


@pytest.mark.parametrize("protocol", inputs.PROTOCOLS)
def test_features_of_the_same_weights_are_equal(golden, make, protocol):
    images = inputs.draw_images(*inputs.FEATURE_IMAGE_SIZE, count=2)
    features = ours.embed(make(protocol), images)
    expected = golden[f"features_{protocol}"]
    assert expected.shape == (2, 2048)
    assert expected.std() > 1
    error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
    # 48 layers of float32 sums, in another order and with the norms folded.
    assert error < 1e-5
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("package", ["torch_fidelity", "pytorch_fid", "clean_fid"])
def test_the_frechet_distance_of_the_same_features_is_equal(package):
    distance = ours.frechet(*FEATURES["narrow"])
    expected = SCORES["narrow"][f"fid_{package}"]
    assert distance == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("package", ["torch_fidelity", "clean_fid"])
def test_the_kernel_distance_of_the_same_features_is_equal(name, package):
    expected = SCORES[name][f"kid_{package}"]
    assert expected > 1e-4
    assert kernel_distance(*FEATURES[name]) == pytest.approx(expected, rel=1e-6)


def manifold(name, *keys, **options):
    found = manifold_scores(*FEATURES[name], **options)
    return [found[key][0] for key in keys]


@pytest.mark.parametrize("name", FEATURES)
def test_precision_and_recall_of_the_same_features_are_equal(name):
    scores = SCORES[name]
    assert 0 < scores["precision_torch_fidelity"] < 1
    expected = [scores[f"{key}_torch_fidelity"] for key in ("precision", "recall")]
    # torch-fidelity averages in float32.
    assert manifold(name, "precision", "recall") == pytest.approx(expected, rel=1e-6)
    for k in (3, 5):
        expected = [scores[f"{key}_{k}_prdc"] for key in ("precision", "recall")]
        found = manifold(name, "precision", "recall", neighbours=(k, k))
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("k", [3, 5])
def test_density_and_coverage_of_the_same_features_are_equal(name, k):
    expected = [SCORES[name][f"{key}_{k}_prdc"] for key in ("density", "coverage")]
    assert min(expected) > 0
    found = manifold(name, "density", "coverage", neighbours=(k, k))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["clean", "legacy_pytorch"])
def test_the_fid_of_photos_is_the_published_code_s(make, protocol):
    if not inputs.PHOTOS.is_file():
        pytest.skip("no ../shared/data/imagenette2-224.tar: the photos are not public")
    count = inputs.PHOTO_COUNTS[0]
    expected = json.loads((GOLDEN / "photos.json").read_text())[str(count)][protocol]
    fid = ours.photo_fid(make(protocol), count)
    # Theirs is low by 6e-5: roots of the rounding errors of a singular product add up.
    assert fid == pytest.approx(expected, rel=1e-3)
