"""Bookkeeping of detection with a detector that counts, and one run of the real one."""

import json

import jax
import numpy as np
import pandas as pd
import pytest
from etils import epath

from configs import tiny
from copymit.data.tokenizer import make_tokenizer
from copymit.evaluation import detect as detect_module
from copymit.evaluation.detect import detect_prompts, summarise
from copymit.evaluation.prompts import Prompt
from copymit.mitigation.detector import DETECTORS


@pytest.fixture
def config():
    config = tiny.get_config()
    config.eval.num_inference_steps = 2
    config.eval.batch_size = 4
    config.model.unet.block_out_channels = (8,)
    config.model.unet.cross_attention = (True,)
    return config


def some_prompts(count):
    return [
        Prompt(f"{i:06d}", f"given {i}", f"red cat {i % 10}", 0, 1.5, None)
        for i in range(count)
    ]


@pytest.fixture
def batches(monkeypatch):
    """Replaces the detector by one whose numbers are the ids of prompts."""
    seen = []

    def make_detector(model, trajectory, options, negative_ids):
        def detect(params, input_ids, prompt_ids):
            seen.append(np.asarray(prompt_ids).tolist())
            found = {name: np.asarray(prompt_ids) + 0.5 for name in DETECTORS}
            return found | {"token_attribution": np.asarray(input_ids) * 1.0}

        return detect

    monkeypatch.setattr(detect_module, "make_detector", make_detector)
    return seen


def no_params(model, mesh):
    return {}


def test_every_prompt_gets_a_row_and_its_tokens(config, batches, tmp_path):
    out, prompts = epath.Path(tmp_path), some_prompts(6)
    table = detect_prompts(config, no_params, prompts, out, "d")
    assert list(table) == ["id", "prompt", *DETECTORS]
    assert table["id"].tolist() == [p.id for p in prompts]
    assert table["prompt"].tolist() == [p.prompt_used for p in prompts]
    assert table["sharpness"].tolist() == [i + 0.5 for i in range(6)]
    # Every batch is full, the last one with repetitions.
    sizes = {len(batch) for batch in batches}
    assert len(sizes) == 1
    lines = (out / "tokens.jsonl").read_text().splitlines()
    assert len(lines) == 6
    first = json.loads(lines[0])
    assert first["tokens"] == ["red", "cat", "0", "<end>"]
    ids = make_tokenizer(8).encode(["red cat 0"])[0]
    assert first["attribution"] == ids[1:5].tolist()


def test_an_interrupted_run_goes_on_where_it_stopped(
    config, batches, tmp_path, monkeypatch
):
    out, prompts = epath.Path(tmp_path), some_prompts(24)
    write, written = detect_module._write_part, []

    def stopping(parts, rows):
        write(parts, rows)
        written.append(len(rows))
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(detect_module, "_write_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        detect_prompts(config, no_params, prompts, out, "d")
    assert not (out / "tokens.jsonl").exists()
    monkeypatch.setattr(detect_module, "_write_part", write)
    batches.clear()
    table = detect_prompts(config, no_params, prompts, out, "d")
    assert {i for batch in batches for i in batch} == set(range(sum(written), 24))
    assert table["sharpness"].tolist() == [i + 0.5 for i in range(24)]


def test_nothing_is_loaded_where_nothing_is_missing(config, batches, tmp_path):
    out = epath.Path(tmp_path)
    first = detect_prompts(config, no_params, some_prompts(3), out, "d")
    again = detect_prompts(config, None, some_prompts(3), out, "d")
    pd.testing.assert_frame_equal(first, again)


def test_only_changed_and_new_prompts_are_looked_at_again(config, batches, tmp_path):
    out, prompts = epath.Path(tmp_path), some_prompts(5)
    detect_prompts(config, no_params, prompts[:4], out, "d")
    batches.clear()
    prompts[1] = prompts[1]._replace(prompt_used="a dog")
    table = detect_prompts(config, no_params, prompts, out, "d")
    assert {i for batch in batches for i in batch} == {1, 4}
    assert table["prompt"][1] == "a dog"


@pytest.mark.parametrize("what", ["digest", "seed", "options"])
def test_other_settings_measure_everything_again(what, config, batches, tmp_path):
    out, prompts, options = epath.Path(tmp_path), some_prompts(2), None
    detect_prompts(config, no_params, prompts, out, "d")
    batches.clear()
    if what == "seed":
        config.eval.seed = 1
    if what == "options":
        options = detect_module.DetectionOptions(num_seeds=2)
    digest = "other" if what == "digest" else "d"
    detect_prompts(config, no_params, prompts, out, digest, options)
    assert {i for batch in batches for i in batch} == {0, 1}
    assert len(list((out / "detection.parts").iterdir())) == 1


def test_the_summary_tells_good_detectors_from_bad_ones(config, batches, tmp_path):
    table = detect_prompts(
        config, no_params, some_prompts(8), epath.Path(tmp_path), "d"
    )
    table["text_stability"] *= -1
    memorised = np.arange(8) >= 5
    summary = summarise(table, memorised)
    assert summary.keys() == DETECTORS.keys()
    assert summary["sharpness"]["auc"] == 1.0
    assert summary["sharpness"]["tpr_at_1_percent_fpr"] == 1.0
    assert summary["text_stability"]["auc"] == 0.0


def test_the_real_detector_fills_the_table_with_finite_numbers(config, tmp_path):
    def load_params(model, mesh):
        rng = np.random.default_rng(0)
        return jax.tree.map(
            lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), model.parameters
        )

    table = detect_prompts(
        config, load_params, some_prompts(3), epath.Path(tmp_path), "d"
    )
    values = table[list(DETECTORS)].to_numpy()
    assert np.isfinite(values).all()
    assert (np.ptp(values, axis=0) > 0).all()
    assert (table["end_token_attention"].between(0, 1)).all()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], r"no prompts"),
        (some_prompts(1) * 2, r"two prompts have the id '000000'"),
    ],
)
def test_prompts_that_cannot_be_told_apart_are_refused(
    prompts, message, config, tmp_path
):
    with pytest.raises(ValueError, match=message):
        detect_prompts(config, no_params, prompts, epath.Path(tmp_path), "d")
