"""Where nobody names an embedder, the size of the images does, and everything says so."""

import json
import logging

import numpy as np
import pytest

from copymit.embedding import sscd
from copymit.embedding.headline import Choice
from copymit.evaluation import evaluate, score_stage, settings
from copymit.evaluation.artefacts import open_artefacts
from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_finished, open_pair
from copymit.settings import evaluation_settings

SSCD = ("sscd_288_int8", "pixels")
STAND_IN = ("efficientnet_lite0", "pixels")


@pytest.fixture
def draw(rng):
    """Returns a function: side in pixels -> four noisy images."""
    return lambda side: rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)


@pytest.fixture
def open_audit(tmp_path):
    """Opens images against others; nothing is computed."""

    def open_it(generations, references, **changes):
        config = evaluation_settings()
        config.update(changes)
        return open_pair(generations, references, tmp_path, config, None)

    return open_it


@pytest.mark.parametrize(
    ("generations", "references", "expected"),
    [(64, 64, SSCD), (64, 300, SSCD), (32, 300, STAND_IN), (256, 32, STAND_IN)],
)
def test_the_smaller_of_generations_and_training_images_decides(
    generations, references, expected, draw, open_audit
):
    subject = open_audit(draw(generations), draw(references))
    assert tuple(subject.eval.embedders) == expected
    assert subject.choice.embedder == expected[0]
    assert str(min(generations, references)) in subject.choice.reason


def test_a_size_of_comparison_takes_the_place_of_the_images(draw, open_audit):
    subject = open_audit(draw(128), draw(128), resolution=32)
    assert tuple(subject.eval.embedders) == STAND_IN


def test_the_choice_is_written_into_settings_record_and_digests(draw, open_audit):
    generations, references = draw(64), draw(64)
    subject = open_audit(generations, references)
    assert tuple(subject.settings["eval.embedders"]) == SSCD
    assert tuple(subject.record["eval"]["embedders"]) == SSCD
    named = open_audit(
        generations,
        references,
        embedders=SSCD,
        quality_embedders=("efficientnet_lite0",),
    )
    assert named.choice is None
    chosen, asked = (open_artefacts(s).stages for s in (subject, named))
    assert chosen["embed"] == asked["embed"]
    # The scores say who chose.
    assert chosen["score"] != asked["score"]


def test_quality_is_not_measured_by_a_copy_detector_unless_asked_for(draw, open_audit):
    images = draw(64), draw(64)
    assert tuple(open_audit(*images).eval.quality_embedders) == STAND_IN[:1]
    asked = open_audit(*images, quality_embedders=("pixels_16",))
    assert tuple(asked.eval.quality_embedders) == ("pixels_16",)
    named = open_audit(*images, embedders=("sscd_288_int8",))
    assert tuple(named.eval.quality_embedders) == ()


def test_a_named_embedder_whose_weights_are_not_there_stops_before_any_work(
    draw, open_audit, monkeypatch
):
    monkeypatch.setattr(sscd, "_PACKAGED_FILE", ("no_such_package", "sscd.onnx"))
    subject = open_audit(draw(64), draw(64), embedders=("pixels", "sscd_288_int8"))
    with pytest.raises(FileNotFoundError, match=r"sscd_288_int8 needs .*pip install"):
        run_stages(subject)
    assert not subject.out.exists()


@pytest.fixture
def stand_in(monkeypatch):
    """Takes the place of the rule; it needs no network."""
    choice = Choice("pixels_16", "pixels_16 stands in for something better.", True)
    monkeypatch.setattr(settings, "choose_embedder", lambda *_: choice)
    monkeypatch.setattr(settings, "STAND_IN", "pixels_16")
    return choice


def test_log_scores_page_and_card_say_what_was_chosen_and_a_stand_in_is_an_alarm(
    draw, tmp_path, stand_in, caplog
):
    with caplog.at_level(logging.INFO):
        result = evaluate(draw(64), draw(64), workdir=tmp_path, tile_l2_candidates=0)
    (said,) = [r for r in caplog.records if r.getMessage() == stand_in.reason]
    assert said.levelno == logging.WARNING
    assert result.scores["embedder"] == "pixels_16"
    assert result.scores["embedder_choice"] == stand_in.reason
    assert result.scores["alarms"][0] == stand_in.reason
    page = result.report.read_text()
    assert f'<p class="notice">{stand_in.reason}</p>' in page
    assert stand_in.reason in (result.directory / "metrics_card.txt").read_text()


def test_an_evaluation_that_is_opened_again_is_the_one_that_was_made(
    tmp_path, stand_in, draw, monkeypatch
):
    monkeypatch.setattr(score_stage, "score_quality", lambda *_: {"warnings": []})
    for name in ("made", "trained"):
        np.save(tmp_path / f"{name}.npy", draw(64))
    paths = [str(tmp_path / f"{name}.npy") for name in ("made", "trained")]
    subject = open_pair(*paths, tmp_path / "audit", evaluation_settings(), None)
    out = run_stages(subject, ("embed", "search", "score"))
    # What is installed since does not change what was measured.
    monkeypatch.setattr(
        settings, "choose_embedder", lambda *_: pytest.fail("it was chosen before")
    )
    again = open_finished(out)
    assert again.choice == stand_in
    assert open_artefacts(again).stages == open_artefacts(subject).stages
    assert open_artefacts(again).is_scored()
    record = json.loads((out / "evaluation.json").read_text())
    del record["choice"]  # as an older copymit wrote it
    (out / "evaluation.json").write_text(json.dumps(record))
    assert open_finished(out).choice is None
