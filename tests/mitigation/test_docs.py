"""What is said of mitigations is what their records say."""

import re
from pathlib import Path

import pytest

from copymit.mitigation.__main__ import page
from copymit.mitigation.detector import DETECTORS
from copymit.mitigation.registry import MITIGATIONS, SETTINGS

ROOT = Path(__file__).parents[2]


def test_the_page_is_written_from_the_records():
    written = (ROOT / "docs" / "mitigations.md").read_text()
    assert written == page(), "python -m copymit.mitigation > docs/mitigations.md"


def test_nothing_of_a_record_breaks_the_tables():
    for line in page().splitlines():
        if line.startswith("|"):
            assert line.count("|") in (4, 6)


def test_readme_leads_to_the_page_and_names_only_what_there_is():
    text = (ROOT / "README.md").read_text()
    assert "(docs/mitigations.md)" in text
    _, _, table = text.partition("| in training | at generation |")
    named = set(re.findall(r"`(\w+)`", table.partition("\n\n")[0]))
    assert len(named) > 15
    assert named <= MITIGATIONS.keys()


@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_record_is_whole(name):
    m = MITIGATIONS[name]
    assert all((m.what, m.published, m.source))
    assert m.switch.least <= m.strength <= m.switch.most
    # Something is done at some stage, or to the settings of another one.
    stages = (
        *(m.caption, m.training_text, m.keep, m.noising, m.prompt, m.text),
        *(m.attention, m.noise, m.embedding, m.guidance, m.scales, m.prediction),
    )
    assert any(stages) or m.beside


@pytest.mark.parametrize("path", SETTINGS)
def test_a_setting_has_limits_around_its_default_and_a_meaning(path):
    setting = SETTINGS[path]
    assert setting.section in ("train", "generate")
    assert setting.least <= setting.default <= setting.most
    assert setting.meaning


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_a_source(name):
    assert DETECTORS[name].title
    assert len(DETECTORS[name].source) > 20
