"""Targets that are quantiles: of which prompts, and what becomes of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from copymit.data.dataset import load_dataset
from copymit.data.tokenizer import make_tokenizer
from copymit.evaluation import calibration
from copymit.evaluation.calibration import calibrate, calibration_prompts
from copymit.generator import sampling_options
from copymit.mitigation.registry import strengths
from copymit.sharding import make_mesh


@pytest.fixture
def config():
    config = tiny.get_config()
    config.mitigation.generate.update(prompt_quantile=0.75)
    return config


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(8, 49_407)


def test_the_prompts_are_captions_never_trained_on(config, tokenizer):
    dataset = load_dataset(config.data, config.seed)
    held_out = {dataset.source[int(i)].captions[0] for i in dataset.heldout}
    assert set(calibration_prompts(config, dataset, tokenizer)) == held_out


def test_a_file_of_other_prompts_comes_first(config, tokenizer, tmp_path):
    (tmp_path / "others.txt").write_text("a red fox\na blue dog\n")
    config.eval.detection.other_prompts = str(tmp_path / "others.txt")
    dataset = load_dataset(config.data, config.seed)
    prompts = calibration_prompts(config, dataset, tokenizer)
    assert prompts[:3] == ["a red fox", "a blue dog", "a red fox"]


def test_no_prompts_that_are_not_memorised_is_said_before_any_work(config, tokenizer):
    config.data.num_heldout = 0
    dataset = load_dataset(config.data, config.seed)
    with pytest.raises(ValueError, match=r"eval\.detection\.other_prompts, set data"):
        calibration_prompts(config, dataset, tokenizer)


def test_the_target_is_the_quantile_of_what_the_model_does(
    config, tokenizer, monkeypatch, caplog
):
    def make_measure(*_):
        return lambda params, input_ids, image_ids: {
            "prompt_target": params + jnp.asarray(image_ids, jnp.float32)
        }

    monkeypatch.setattr(calibration, "make_measure", make_measure)
    options = sampling_options(config.eval, config.mitigation.generate)
    prompts = [f"prompt {i}" for i in range(64)]
    with caplog.at_level("INFO"):
        found = calibrate(
            options, prompts, None, None, tokenizer, None, 100.0, make_mesh()
        )
    expected = float(np.quantile(100 + np.arange(64), 0.75))
    assert found.mitigations == strengths(prompt_quantile=0.75, prompt_target=expected)
    assert f"generate.prompt_target={expected:.4g}, by 64 prompts" in caplog.text
