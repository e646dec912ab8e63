"""Embedders by name: what is known, and what an unknown or incomplete one is told."""

import numpy as np
import pytest

from copymit.embedding.registry import (
    EMBEDDERS,
    WEIGHTS,
    check_embedders,
    make_embedder,
)
from copymit.settings import evaluation_settings


def test_an_embedder_that_is_not_known_is_named_beside_those_that_are():
    for names in (["magic"], ["pixels", "magic"], []):
        with pytest.raises(ValueError, match="efficientnet_lite0, pixels"):
            check_embedders(names)
    with pytest.raises(ValueError, match=r"eval\.quality_embedders=.*magic"):
        check_embedders(["magic"], "eval.quality_embedders")
    with pytest.raises(ValueError, match="magic"):
        make_embedder("magic")
    check_embedders(["pixels", "efficientnet_lite0"])


def test_every_weights_file_has_a_setting_and_no_setting_is_without_use():
    assert set(evaluation_settings().weights) == set(WEIGHTS)


@pytest.mark.parametrize(
    "name", [n for n in EMBEDDERS if n.startswith(("sscd", "inc"))]
)
def test_weights_that_must_be_downloaded_are_named_with_their_setting(name):
    with pytest.raises(ValueError, match=r"eval\.weights\.\w+=PATH"):
        make_embedder(name)


def test_protocols_differ_in_name_and_in_words():
    pixels, net = make_embedder("pixels"), make_embedder("efficientnet_lite0")
    assert (pixels.name, net.name) == ("pixels", "efficientnet_lite0")
    assert pixels.protocol != net.protocol


def test_the_packaged_network_tells_images_apart(rng):
    embedder = make_embedder("efficientnet_lite0")
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    features = np.asarray(embedder.apply(embedder.params, images))
    assert features.shape == (2, 1280)
    assert not np.allclose(features[0], features[1])
