"""A name that there is not is answered with the one that was meant."""

import pytest

from copymit.spelling import nearest

SETTINGS = ["train.steps", "train.warmup_steps", "data.source", "eval.tiles"]


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("dmeo", ["demo", "tiny"], "demo"),
        ("tinny", ["demo", "tiny"], "tiny"),
        ("train.stepz", SETTINGS, "train.steps"),
        ("steps", SETTINGS, "train.steps"),
        (
            "2-1",
            ["stable-diffusion-v1-4", "stable-diffusion-2-1"],
            "stable-diffusion-2-1",
        ),
    ],
)
def test_the_likeliest_name_is_asked_for(word, known, meant):
    assert nearest(word, known) == f"; did you mean {meant}?"
    assert nearest(word, known, "--") == f"; did you mean --{meant}?"


@pytest.mark.parametrize("word", ["", "zzzz", "something_else"])
def test_what_is_like_nothing_is_not_guessed(word):
    assert nearest(word, SETTINGS) == ""
