"""Mitigations on the text: what they vary, and what they leave alone."""

import numpy as np
import pytest
from scipy import stats

from copymit.data.captions import make_caption_function
from copymit.data.examples import Example
from copymit.mitigation.prompts import multiple_captions

MANY = Example("many.png", b"", ("one", "two", "three", "four", "five"), None)
SINGLE = Example("single.png", b"", ("only",), None)


def _caption(style="instance"):
    return make_caption_function(style, "none", (), decode=str, seed=0)


@pytest.mark.parametrize("duplicated", [False, True])
def test_multiple_captions_draws_every_caption_equally_often(duplicated, rng):
    varied = multiple_captions(_caption())
    texts = [varied(MANY, duplicated, rng) for _ in range(4000)]
    counts = [texts.count(caption) for caption in MANY.captions]
    assert sum(counts) == len(texts)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("style", "text"), [("instance", "only"), ("fixed", "An image")]
)
def test_multiple_captions_leaves_a_single_caption_as_it_was(style, text):
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    varied = multiple_captions(_caption(style))
    assert {varied(SINGLE, False, rng) for _ in range(20)} == {text}
    assert rng.random() == untouched.random()  # and draws nothing
