"""Mitigations on the text: what they vary, and what they leave alone."""

import re
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from copymit.data.captions import make_caption_function
from copymit.data.examples import Example
from copymit.mitigation.methods.multiple_captions import multiple_captions
from copymit.mitigation.methods.random_caption import random_caption
from copymit.mitigation.methods.random_numbers import random_numbers
from copymit.mitigation.methods.random_tokens import random_tokens
from copymit.mitigation.methods.word_repetition import word_repetition
from copymit.mitigation.rewriting import in_a_share, in_turn, insert_word

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


def spell(ids):
    """Decodes ids so that every token can be told apart."""
    return "+".join(f"<{i}>" for i in ids)


REWRITES = {
    "random tokens": (random_tokens(2, spell), 2),
    "word repetition": (word_repetition(2), 2),
    "random numbers": (random_numbers(4), 4),
}


@pytest.mark.parametrize("name", REWRITES)
def test_insertions_keep_the_words_in_order_and_have_their_number(name, rng):
    rewrite, count = REWRITES[name]
    words = [f"w{i}" for i in range(5)]
    for _ in range(200):
        found = rewrite(" ".join(words), rng).split(" ")
        assert len(found) == len(words) + count
        if name != "word repetition":
            assert [w for w in found if w in words] == words


@pytest.mark.parametrize(
    ("rewrite", "choices"),
    [
        (random_tokens(1, lambda ids: "x"), "x"),
        (random_numbers(1), "x"),
        (word_repetition(1), "abcd"),
    ],
)
def test_every_word_goes_to_every_gap_equally_often(rewrite, choices, rng):
    words = list("abcd")
    ways = Counter(
        " ".join([*words[:gap], word, *words[gap:]])
        for word in choices
        for gap in range(len(words) + 1)
    )
    number = re.compile(r"\d+")
    found = Counter(number.sub("x", rewrite("a b c d", rng)) for _ in range(5000))
    assert found.keys() == ways.keys()
    expected = [ways[text] / ways.total() * 5000 for text in ways]
    assert stats.chisquare([found[text] for text in ways], expected).pvalue > 1e-3


@pytest.mark.parametrize("name", REWRITES)
def test_the_same_draw_gives_the_same_text(name):
    rewrite, _ = REWRITES[name]
    texts = {rewrite("a red apple", np.random.default_rng(7)) for _ in range(3)}
    assert len(texts) == 1


def test_a_word_is_inserted_at_every_gap_equally_often(rng):
    places = [
        insert_word("a b c d", "x", rng).split(" ").index("x") for _ in range(5000)
    ]
    counts = np.bincount(places, minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_random_tokens_are_uniform_below_the_special_ones(rng):
    rewrite = random_tokens(1, lambda ids: str(ids[0]))
    found = np.array([int(rewrite("", rng)) for _ in range(5000)])
    assert found.min() >= 0
    assert found.max() < 49_400
    assert stats.kstest(found / 49_400, "uniform").pvalue > 1e-3


def test_random_numbers_are_uniform_below_a_hundred_thousand(rng):
    found = np.array([int(random_numbers(1)("", rng)) for _ in range(5000)])
    assert found.max() < 100_000
    assert stats.kstest(found / 100_000, "uniform").pvalue > 1e-3


def test_repeated_words_are_drawn_uniformly_from_the_original_ones(rng):
    repeated = []
    for _ in range(3000):
        words = word_repetition(1)("a b c", rng).split(" ")
        repeated += [word for word in "abc" if words.count(word) == 2]
    counts = [repeated.count(word) for word in "abc"]
    assert sum(counts) == 3000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_random_caption_has_four_tokens_and_nothing_of_the_old_one(rng):
    ids = random_caption(lambda ids: " ".join(map(str, ids)))("a red apple", rng)
    assert len(ids.split(" ")) == 4


def test_random_captions_are_uniform_below_the_special_tokens(rng):
    captions = random_caption(lambda ids: " ".join(map(str, ids)))
    found = np.array([captions("", rng).split(" ") for _ in range(1250)], int).ravel()
    assert found.max() < 49_400
    assert stats.kstest(found / 49_400, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_share_of_the_captions_is_rewritten(share, rng):
    sometimes = in_a_share(share, lambda text, rng: "new")(_caption())
    count = sum(sometimes(SINGLE, False, rng) == "new" for _ in range(4000))
    low, high = stats.binom(4000, share).interval(0.9999)
    assert low <= count <= high


def test_without_strength_nothing_changes_and_nothing_is_drawn(rng):
    untouched = np.random.default_rng(0)
    rng = np.random.default_rng(0)
    rewrites = [
        random_tokens(0, spell),
        word_repetition(0),
        random_numbers(0),
        in_turn([]),
    ]
    assert {rewrite("a red apple", rng) for rewrite in rewrites} == {"a red apple"}
    assert rng.random() == untouched.random()


def test_rewrites_follow_one_another(rng):
    both = in_turn([lambda text, _: text + "!", lambda text, _: text.upper()])
    assert both("old", rng) == "OLD!"


def test_an_empty_caption_stays_empty(rng):
    changed = in_a_share(1.0, random_tokens(2, spell))(_caption("unconditional"))
    assert changed(MANY, False, rng) == ""
