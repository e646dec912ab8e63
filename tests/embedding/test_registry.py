"""Embedders by name: what is known, and what an unknown or incomplete one is told."""

import numpy as np
import pytest

from copymit.embedding.registry import (
    EMBEDDERS,
    WEIGHTS,
    check_embedders,
    check_weights,
    make_embedder,
    missing_weights,
    weights_name,
)
from copymit.settings import evaluation_settings

DOWNLOADED = ("sscd_disc_large", "sscd_disc_mixup", "inception")


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
    "name", [n for n in EMBEDDERS if weights_name(n) in DOWNLOADED]
)
def test_weights_that_must_be_downloaded_are_asked_for_before_and_when_they_are_read(
    name,
):
    with pytest.raises(ValueError, match=r"eval\.weights\.\w+=PATH"):
        make_embedder(name)
    with pytest.raises(ValueError, match=r"eval\.weights\.\w+=PATH"):
        check_weights(["pixels", name], {})
    given = {weights_name(name): "gone.pt"}
    with pytest.raises(FileNotFoundError, match=rf"gone\.pt.*{weights_name(name)}"):
        check_weights([name], given)
    check_weights([name], {weights_name(name): __file__})


def test_weights_of_packages_and_hubs_are_not_asked_for():
    names = [name for name in EMBEDDERS if weights_name(name) not in DOWNLOADED]
    assert {"efficientnet_lite0", "sscd_288_int8", "dinov2_vits14"} <= set(names)
    check_weights(names, {})


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


def test_missing_weights_are_told_before_they_are_needed(tmp_path):
    names = ["pixels", "sscd_288", "sscd_dcr", "pixels"]
    given = {"sscd_disc_mixup": str(tmp_path / "gone.pt")}
    first, second = missing_weights(names, given)
    assert first.startswith("sscd_288: no file ")
    assert "gone.pt" in first
    assert second.startswith("sscd_dcr: sscd_dcr needs the weights of SSCD: download")
    (tmp_path / "gone.pt").write_bytes(b"x")
    assert missing_weights(names[:2], given) == []
