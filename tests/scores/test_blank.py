"""Images that tell nothing of what a model learnt are counted, named and warned of."""

import pytest

from copymit.scores.blank import describe_blank, describe_not_finite
from copymit.scores.names import look_up


@pytest.mark.parametrize(
    ("describe", "key", "words"),
    [
        (
            describe_blank,
            "blank_heldout",
            "2 of 1,000 held-out images are of one colour",
        ),
        (
            lambda _, *args: describe_not_finite(*args),
            "not_finite_generations",
            "2 of 1,000 generations had latents or pixels that are not finite",
        ),
    ],
)
def test_they_are_counted_and_named_and_all_others_not_mentioned(describe, key, words):
    assert describe("heldout", [], 1000) == {"alarms": []}
    found = describe("heldout", ["a", "b"], 1000)
    (alarm,) = found.pop("alarms")
    assert found == {f"num_{key}": 2, key: ["a", "b"]}
    assert alarm.startswith(f"{words} (a, b)")
    assert all(look_up(name) for name in found)
    (alarm,) = describe("heldout", list("abcdefg"), 7)["alarms"]
    assert "(a, b, c, d, e, ...)" in alarm
