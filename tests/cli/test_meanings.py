"""Every setting has a meaning, which is the comment beside it."""

import pytest
from ml_collections import ConfigDict

from configs import common
from copymit.cli.meanings import comments_of, list_settings, meanings
from copymit.config import flatten


def settings():
    config = ConfigDict()
    # Two lines above it
    # are one.
    config.above = 1
    config.beside = 2  # here
    # None of the next but one.

    config.bare = 3
    config.long = 4  # within
    config.section = inner = ConfigDict()  # of a section
    inner.value = "# not this"  # but this
    inner.deep = deep = ConfigDict()
    deep.value = 5
    config.section.other = 6  # by its full name
    return config


def test_comments_beside_and_above_are_the_meanings():
    assert comments_of(settings) == {
        "above": "Two lines above it are one.",
        "beside": "here",
        "bare": "",
        "long": "within",
        "section": "of a section",
        "section.value": "but this",
        "section.deep": "",
        "section.deep.value": "",
        "section.other": "by its full name",
    }


def test_every_setting_there_is_has_a_meaning():
    known = meanings()
    assert known.keys() == flatten(common.get_config().to_dict()).keys()
    assert [name for name, meaning in known.items() if not meaning] == []
    assert known["train.batch_size"] == "over all hosts"
    assert known["mesh.fsdp"] == "devices along each axis; -1 = the rest"


def test_a_line_has_name_value_and_meaning_and_a_word_chooses():
    config = common.get_config()
    config.train.batch_size = 7
    lines = list(list_settings(config.to_dict(), "config"))
    assert len(lines) == len(flatten(config.to_dict()))
    (line,) = (line for line in lines if line.startswith("--config.train.batch_size "))
    assert line.split(maxsplit=3) == [
        *("--config.train.batch_size", "=", "7"),
        "over all hosts",
    ]
    chosen = list(list_settings(config.to_dict(), "config", "HOSTS"))
    assert line in chosen
    assert all("hosts" in line for line in chosen)


def test_an_evaluations_settings_are_listed_by_its_own_flag():
    (line,) = list_settings(common.get_config().eval.to_dict(), "eval", "tile_l2_cand")
    assert line.startswith("--eval.tile_l2_candidates = 3")
    assert "compared tile by tile" in line


def test_a_word_that_no_setting_has_is_answered_with_one():
    with pytest.raises(ValueError, match=r"did you mean train\.steps\?"):
        list(list_settings(common.get_config().to_dict(), "config", "stpes"))
