"""Records of mitigations and detectors say all that pages and checks take from them."""

import pytest

from copymit.mitigation.detector import DETECTORS
from copymit.mitigation.registry import MITIGATIONS, SETTINGS


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
