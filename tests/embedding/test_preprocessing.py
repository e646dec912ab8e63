"""Presets against transformers' processors, and against Pillow alone."""

import numpy as np
import pytest
from PIL import Image

from copymit.embedding.clip import CLIP_MODELS
from copymit.embedding.dinov2 import PRESET

# Landscape, portrait, smaller than the crop, exactly it; with margins for which
# transformers' crop, which rounds down, agrees with torchvision's.
SIZES = [(300, 400), (500, 256), (96, 128), (224, 224), (60, 64)]


def make_image(size, rng):
    """Smooth enough for interpolation to matter, with noise."""
    coarse = rng.integers(0, 256, (7, 9, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 20, (*size, 3))
    return (np.asarray(smooth, int) + noise).clip(0, 255).astype(np.uint8)


def processed(preset, image):
    return np.asarray(preset.normalise(preset.prepare(image)[None])[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clip_vit_l14", "clip_vit_l14_336", "dinov2"])
def test_pixels_equal_those_of_the_published_processor(name, size, rng):
    transformers = pytest.importorskip("transformers")
    if name == "dinov2":
        preset = PRESET
        # preprocessor_config.json of facebook/dinov2-*.
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": 256},
            crop_size={"height": 224, "width": 224},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
    else:
        preset = CLIP_MODELS[name].preset
        # preprocessor_config.json of openai/clip-*.
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": preset.size},
            crop_size={"height": preset.size, "width": preset.size},
        )
    image = make_image(size, rng)
    expected = processor(Image.fromarray(image), return_tensors="np").pixel_values[0]
    # Both divide and subtract in float32, in other orders.
    np.testing.assert_allclose(
        processed(preset, image), expected.transpose(1, 2, 0), atol=2e-6
    )


def test_half_a_pixel_of_margin_is_rounded_as_torchvision_does(rng):
    """That is, to even: OpenAI's code crops with it, and transformers rounds down."""
    transformers = pytest.importorskip("transformers")
    image = make_image((224, 299), rng)  # a margin of 37.5 on either side
    processor = transformers.CLIPImageProcessor()
    theirs = processor(Image.fromarray(image), return_tensors="np").pixel_values[0]
    theirs = theirs.transpose(1, 2, 0)
    ours = processed(CLIP_MODELS["clip_vit_l14"].preset, image)
    np.testing.assert_allclose(ours[:, :-1], theirs[:, 1:], atol=2e-6)  # float32


def test_pixels_of_the_ancestor_equal_those_of_pillow(rng):
    image = make_image((300, 420), rng)
    resized = Image.fromarray(image).resize((358, 256), Image.Resampling.BILINEAR)
    cropped = np.asarray(resized.crop((67, 16, 67 + 224, 16 + 224)))
    found = processed(CLIP_MODELS["clip_vit_b16_dcr"].preset, image)
    np.testing.assert_allclose(found, cropped / 127.5 - 1, atol=1e-6)  # float32


def test_what_is_prepared_is_bytes_of_one_size(rng):
    for size in SIZES:
        prepared = PRESET.prepare(make_image(size, rng))
        assert (prepared.shape, prepared.dtype) == ((224, 224, 3), np.uint8)


def test_the_text_says_all_that_changes_a_number():
    texts = [model.preset.text for model in CLIP_MODELS.values()] + [PRESET.text]
    assert len(set(texts)) == 4  # three of CLIP's five share theirs
    assert PRESET.text == (
        "short side to 256 px (Pillow, bicubic), centre crop of 224 px as torchvision's, "
        "x / 255, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)"
    )
