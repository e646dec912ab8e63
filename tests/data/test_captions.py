"""Caption styles, and which captions vary under partial duplication."""

import numpy as np
import pytest
from scipy import stats

from copymit.data.captions import (
    RANDOM_CAPTION_TOKENS,
    RANDOM_TOKEN_LIMIT,
    VariedCaptions,
    check_captions,
    make_caption_function,
)
from copymit.data.examples import Example

CLASSES = ("tench", "church")
EXAMPLE = Example("a/b.png", b"", ("first", "second", "third", "fourth"), 1)
OTHER = Example("a/c.png", b"", ("only",), 0)


def _decode(ids) -> str:
    return " ".join(map(str, ids))


def _make(style="instance", duplication="none", class_names=CLASSES, seed=0):
    return make_caption_function(
        style, duplication, class_names, decode=_decode, seed=seed
    )


def _texts(caption, example, duplicated, count=400) -> list[str]:
    rng = np.random.default_rng(1)
    return [caption(example, duplicated, rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("fixed", "An image"),
        ("class", "An image of church"),
        ("instance", "first"),
        ("unconditional", ""),
    ],
)
@pytest.mark.parametrize("duplication", ["none", "full"])
@pytest.mark.parametrize("duplicated", [False, True])
def test_a_style_gives_one_text_at_every_visit(style, text, duplication, duplicated):
    assert set(_texts(_make(style, duplication), EXAMPLE, duplicated, 50)) == {text}


def test_a_random_caption_is_four_tokens_that_belong_to_the_image():
    caption = _make("random")
    (text,) = set(_texts(caption, EXAMPLE, True, 20))
    ids = list(map(int, text.split()))
    assert len(ids) == RANDOM_CAPTION_TOKENS == 4
    assert max(ids) < RANDOM_TOKEN_LIMIT == 49_400
    assert _texts(caption, OTHER, False, 1) != [text]
    assert _texts(_make("random", seed=1), EXAMPLE, False, 1) != [text]
    assert _texts(_make("random"), EXAMPLE, False, 1) == [text]


def test_a_random_caption_of_the_original_code_is_the_one_it_lists():
    listed = EXAMPLE._replace(captions=("[49406, 320, 7]", "second"))
    assert set(_texts(_make("random"), listed, False, 5)) == {"49406 320 7"}
    assert set(_texts(_make("instance"), listed, False, 5)) == {"[49406, 320, 7]"}


@pytest.mark.parametrize("duplication", ["none", "full"])
def test_varied_captions_vary_where_the_image_is_duplicated(duplication):
    varied = EXAMPLE._replace(captions=VariedCaptions(EXAMPLE.captions))
    texts = _texts(_make(duplication=duplication), varied, True, count=4000)
    counts = [texts.count(caption) for caption in EXAMPLE.captions]
    assert sum(counts) == len(texts)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert set(_texts(_make(duplication=duplication), varied, False)) == {"first"}


def test_random_captions_use_all_tokens_evenly():
    caption = _make("random")
    ids = np.array(
        [
            list(
                map(
                    int, caption(OTHER._replace(example_id=f"{i}"), False, None).split()
                )
            )
            for i in range(3000)
        ]
    )
    assert ids.max() < RANDOM_TOKEN_LIMIT
    assert stats.kstest(ids.ravel() / RANDOM_TOKEN_LIMIT, "uniform").pvalue > 1e-3
    assert len(np.unique(ids, axis=0)) == len(ids)


def test_partial_duplication_varies_the_captions_of_duplicated_images_uniformly():
    texts = _texts(_make(duplication="partial"), EXAMPLE, duplicated=True, count=4000)
    counts = [texts.count(caption) for caption in EXAMPLE.captions]
    assert sum(counts) == len(texts)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_partial_duplication_leaves_the_other_images_their_first_caption():
    texts = _texts(_make(duplication="partial"), EXAMPLE, duplicated=False)
    assert set(texts) == {"first"}


def test_full_duplication_repeats_the_caption_with_the_image():
    texts = _texts(_make(duplication="full"), EXAMPLE, duplicated=True)
    assert set(texts) == {"first"}


@pytest.mark.parametrize("style", ["fixed", "class", "random", "unconditional"])
def test_partial_duplication_contradicts_styles_with_a_single_caption(style):
    with pytest.raises(ValueError, match=f"'partial' varies.*'{style}'.*'full'"):
        _make(style, "partial")


def test_an_unknown_style_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'nolevel' is not known: use one of fixed,"):
        _make("nolevel")


def test_class_captions_need_classes():
    with pytest.raises(
        ValueError, match=r"'class' needs classes.*one folder per class"
    ):
        _make("class", class_names=())


@pytest.mark.parametrize("label", [None, -1, 2])
def test_a_label_without_a_class_name_is_named_with_its_image(label):
    caption = _make("class")
    with pytest.raises(ValueError, match=rf"a/b.png: label {label} has no class name"):
        caption(EXAMPLE._replace(label=label), False, np.random.default_rng(0))


def test_partial_duplication_of_an_image_with_one_caption_is_refused():
    ids = ["a", "b", "c", "d"]
    duplicated = np.array([True, True, False, True])
    counts = np.array([1, 2, 1, 1])
    with pytest.raises(ValueError, match=r"2 have one: a, d\. Give more captions"):
        check_captions("partial", ids, duplicated, counts)
    check_captions("full", ids, duplicated, counts)
    check_captions("partial", ids, duplicated & (counts > 1), counts)
