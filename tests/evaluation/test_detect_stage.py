"""Which prompts the detect stage looks at, what it calls memorised, and its summary."""

import types

import numpy as np
import pandas as pd
import pytest
from etils import epath

from configs import tiny
from copymit.data.dataset import load_dataset
from copymit.evaluation import detect_stage
from copymit.evaluation.artefacts import Artefacts
from copymit.evaluation.detect_stage import (
    given_prompts,
    list_prompts,
    run_detect,
    summarise_kinds,
    with_truth,
)
from copymit.evaluation.prompts import Prompt
from copymit.mitigation.detector import DETECTORS


@pytest.fixture
def config():
    config = tiny.get_config()
    config.data.num_heldout = 3
    config.eval.detection.num_prompts = 2
    return config


@pytest.fixture
def prompts():
    """Two generations of each of three prompts, rewritten by a mitigation."""
    rows = [
        Prompt(f"{i:06d}", f"prompt {i % 3}", "rewritten", 0, 1.5, None)
        for i in range(6)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def subject(config, prompts):
    dataset = load_dataset(config.data, config.seed)
    return types.SimpleNamespace(
        run=types.SimpleNamespace(config=config, dataset=dataset),
        eval=config.eval,
        prompts=lambda: prompts,
    )


@pytest.fixture
def artefacts(tmp_path):
    """Neighbours of the generations, and of training images: 0.0, 0.1, ... 1.0."""
    artefacts = Artefacts(epath.Path(tmp_path), "pixels", {"search": "1"}, {}, {})
    similarity = [0.9, 0.5, 0.96, 0.8, 0.7, 0.98]
    for queries, column, values in (
        ("generations", "generation", similarity),
        ("background", "reference_query", np.linspace(0, 1, 11)),
    ):
        names = [f"{i:06d}" for i in range(len(values))]
        table = pd.DataFrame({column: names, "rank": 0, "similarity": values})
        path = artefacts.matches("pixels", queries)
        artefacts.write_table("search", path, table)
    return artefacts


def test_prompts_are_distinct_as_given_and_followed_by_unseen_captions(subject):
    listed = list_prompts(subject)
    texts = [prompt.prompt_used for prompt in listed]
    assert texts[:2] == ["prompt 0", "prompt 1"]
    assert list(listed.values()) == ["prompted"] * 2 + ["unseen"] * 2
    dataset = subject.run.dataset
    captions = [dataset.source[int(i)].captions[0] for i in dataset.heldout]
    assert set(texts[2:]) <= set(captions)
    # A prompt keeps the noise of its first generation; unseen ones have their own.
    ids = [prompt.id for prompt in listed]
    assert ids[:2] == ["000000", "000001"]
    assert len(set(ids)) == 4


def test_captions_that_name_no_image_are_not_unseen(subject):
    subject.run.config.data.caption_style = "fixed"
    assert set(list_prompts(subject).values()) == {"prompted"}


@pytest.fixture
def measured():
    texts = ["prompt 0", "prompt 1", "prompt 2", "never seen"]
    kinds = ["prompted"] * 3 + ["unseen"]
    return pd.DataFrame({"id": list("0123"), "prompt": texts, "kind": kinds})


def test_memorised_is_what_comes_out_more_alike_than_training_images_are(
    measured, subject, artefacts
):
    table, truth = with_truth(measured, subject, artefacts)
    # Means of both generations; the 95th percentile of 0.0, 0.1, ... 1.0 is 0.95.
    np.testing.assert_allclose(table["similarity"][:3], [0.85, 0.6, 0.97])
    assert np.isnan(table["similarity"][3])
    assert table["memorised"].tolist() == [False, False, True, False]
    assert "0.950 by pixels" in truth


def test_a_threshold_or_a_list_of_prompts_may_decide(
    measured, subject, artefacts, tmp_path
):
    subject.eval.detection.memorised_similarity = 0.7
    table, _ = with_truth(measured, subject, artefacts)
    assert table["memorised"].tolist() == [True, False, True, False]
    (tmp_path / "known.txt").write_text("prompt 1\n")
    subject.eval.detection.memorised_prompts = str(tmp_path / "known.txt")
    table, truth = with_truth(measured, subject, artefacts)
    assert table["memorised"].tolist() == [False, True, False, False]
    assert "known.txt" in truth


@pytest.fixture
def lists(config, tmp_path):
    """Returns a function: texts known to be memorised, and others -> the settings."""

    def write(memorised, others):
        for name, texts in (("memorised", memorised), ("other", others)):
            path = tmp_path / f"{name}.txt"
            path.write_text("\n".join(texts))
            config.eval.detection[f"{name}_prompts"] = str(path)
        return config.eval.detection

    return write


def test_two_lists_are_looked_at_in_place_of_what_was_generated(lists, config):
    listed = given_prompts(lists(["a", "b", "a"], ["c"]), config.eval)
    assert [p.prompt_used for p in listed] == ["a", "b", "c"]
    assert [p.id for p in listed] == ["000000", "000001", "000002"]
    assert set(listed.values()) == {"prompted"}


def test_without_both_lists_there_is_none(config):
    assert given_prompts(config.eval.detection, config.eval) == {}


def test_a_prompt_in_both_lists_is_refused(lists, config):
    with pytest.raises(ValueError, match=r"'b' is in both .*memorised.txt and .*other"):
        given_prompts(lists(["a", "b"], ["b"]), config.eval)


def test_two_lists_are_the_truth_and_need_no_generations(lists, subject, tmp_path):
    lists(["a"], ["b", "c"])
    measured = pd.DataFrame(
        {"id": list("012"), "prompt": list("abc"), "kind": ["prompted"] * 3}
    )
    nothing = Artefacts(epath.Path(tmp_path / "nothing"), "pixels", {}, {}, {})
    table, truth = with_truth(measured, subject, nothing)
    assert table["memorised"].tolist() == [True, False, False]
    assert table["similarity"].isna().all()
    assert "memorised.txt" in truth


def test_a_list_that_names_no_prompt_is_refused_before_anything_is_measured(
    lists, subject, artefacts, config, monkeypatch
):
    monkeypatch.setattr(detect_stage, "detect_prompts", None)
    lists(["never generated"], ["b"])
    config.eval.detection.other_prompts = ""
    with pytest.raises(ValueError, match=r"memorised.txt' has none of the 4 prompts"):
        run_detect(subject, artefacts)


def test_each_comparison_has_its_own_numbers():
    table = pd.DataFrame(
        {
            "kind": ["prompted"] * 4 + ["unseen"] * 2,
            "memorised": [True, True, False, False, False, False],
        }
        # Better than the other training prompts, worse than unseen ones.
        | {name: [3.0, 4.0, 1.0, 2.0, 5.0, 6.0] for name in DETECTORS}
    )
    summary = summarise_kinds(table, 0)
    assert [summary[f"num_{k}"] for k in ("memorised", "unmemorised", "unseen")] == [
        *(2, 2, 2)
    ]
    for name in DETECTORS:
        assert summary["unmemorised"][name]["auc"] == 1.0
        assert summary["unseen"][name]["auc"] == 0.0


def test_a_comparison_without_one_of_its_kinds_is_left_out():
    table = pd.DataFrame(
        {"kind": ["prompted"] * 2, "memorised": [False, False]}
        | {name: [1.0, 2.0] for name in DETECTORS}
    )
    summary = summarise_kinds(table, 0)
    assert summary["num_memorised"] == 0
    assert not summary.keys() & {"unmemorised", "unseen"}


def test_folders_of_images_have_no_model_to_look_into(artefacts):
    with pytest.raises(ValueError, match="only images: give --workdir of a training"):
        run_detect(types.SimpleNamespace(run=None), artefacts)
