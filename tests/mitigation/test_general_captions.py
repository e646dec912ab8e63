"""At a share of the visits a caption becomes the least specific one that there is."""

import numpy as np
import pytest
from scipy import stats

from configs import tiny
from copymit.data.captions import make_caption_function
from copymit.data.examples import Example
from copymit.mitigation.record import Words
from copymit.mitigation.registry import defaults, with_mitigations
from copymit.mitigation.training import training_caption

CAPTIONS = ("the old church of St Mary in the rain", "a church", "church in the rain")
CHURCH = Example("church.png", b"", CAPTIONS, 1)
UNLABELLED = CHURCH._replace(label=None)
CLASSES = ("tench", "church")


def captions_of(example, class_names=(), visits=1000, style="instance", **asked):
    plain = make_caption_function(style, "none", CLASSES, decode=str, seed=0)
    values = defaults("train") | asked
    caption = training_caption(plain, values, Words(str, class_names))
    rng = np.random.default_rng(0)
    return [caption(example, False, rng) for _ in range(visits)]


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize(
    ("example", "classes", "general"),
    [
        (CHURCH, CLASSES, "An image of church"),
        (UNLABELLED, CLASSES, "a church"),  # the fewest words
        (CHURCH, (), "a church"),
    ],
)
def test_a_share_of_the_visits_has_the_general_caption(
    example, classes, general, share
):
    texts = captions_of(example, classes, general_captions=share)
    assert set(texts) == {CAPTIONS[0], general}
    low, high = stats.binom(len(texts), share).interval(0.9999)
    assert low <= texts.count(general) <= high


def test_it_acts_on_what_multiple_captions_drew_and_before_words_are_inserted():
    texts = captions_of(
        UNLABELLED, general_captions=1.0, multiple_captions=True, word_repetition=1.0
    )
    words = [text.split(" ") for text in texts]
    assert {len(text) for text in words} == {4}  # "a church" and two words of it
    assert {word for text in words for word in text} == {"a", "church"}


def test_a_dropped_caption_stays_dropped():
    texts = captions_of(
        CHURCH, CLASSES, visits=20, style="unconditional", general_captions=1.0
    )
    assert set(texts) == {""}


def test_it_is_asked_for_by_its_name_and_refuses_captions_made_before():
    config = tiny.get_config()
    config.mitigation.apply = ("general_captions",)
    assert with_mitigations(config).mitigation.train.general_captions == 0.5
    config.data.cache_embeddings = True
    with pytest.raises(ValueError, match=r"general_captions=0.5 makes captions up"):
        with_mitigations(config)
