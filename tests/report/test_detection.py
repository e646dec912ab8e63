"""The report's part on detectors: best first, figures with texts, nothing made up."""

import numpy as np
import pandas as pd
import pytest

from copymit.report.detection import draw_detection, tabulate_detectors
from copymit.report.evaluated_run import Detection


def scores(auc):
    return {
        "auc": auc,
        "auc_ci95": [auc - 0.1, auc],
        "tpr_at_1_percent_fpr": auc / 2,
        "tpr_at_1_percent_fpr_ci95": None,
    }


@pytest.fixture
def detection(rng):
    table = pd.DataFrame(
        {"id": list("abcde"), "prompt": [f"<p {i}>" for i in range(5)]}
    )
    table["memorised"] = [True, False, True, False, False]
    table["norm"] = [2.0, 1.0, 5.0, 4.0, 3.0]
    table["sharp"] = rng.normal(size=5)
    summary = {
        "titles": {"norm": "the norm", "sharp": "the sharpness"},
        "unmemorised": {"norm": scores(0.6), "sharp": scores(0.9)},
    }
    tokens = [
        {"prompt": text, "tokens": ["a", "<end>"], "attribution": [1.0, i]}
        for i, text in enumerate(table["prompt"])
    ]
    return Detection(table, summary, tokens)


def test_the_best_detector_comes_first_and_what_is_unknown_is_empty(detection):
    rows = tabulate_detectors(detection)
    assert [row.title for row in rows] == ["the sharpness", "the norm"]
    auc, found, *unseen = rows[0].cells
    assert (auc[0], found[0]) == ("0.900", "0.450")
    assert "0.800" in auc[1]
    assert unseen == [None, None]


def test_curves_and_the_tokens_of_the_most_suspicious_prompts_are_drawn(detection):
    drawn = draw_detection(detection)
    assert list(drawn) == ["roc", *(f"tokens_{i}" for i in range(1, 5))]
    assert [drawn[f"tokens_{i}"][1].split("“")[1][:5] for i in range(1, 5)] == [
        *("<p 2>", "<p 3>", "<p 4>", "<p 0>")
    ]
    (axes,) = drawn["tokens_1"][0].axes
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, [1.0, 2.0])


def test_without_memorised_prompts_there_is_no_curve(detection):
    table = detection.table.assign(memorised=False)
    assert "roc" not in draw_detection(detection._replace(table=table))
