import numpy as np
import pandas as pd

import copymit
from copymit.report.evaluated_run import EvaluatedRun
from copymit.report.metrics_card import write_metrics_card


def run_of(scores, settings=None, prompts=None):
    return EvaluatedRun(
        title="a run",
        scores=scores,
        settings=settings or {},
        matches=pd.DataFrame(),
        similarities={},
        read_generation=lambda _: np.zeros((4, 4, 3), np.uint8),
        read_reference=lambda _: np.zeros((4, 4, 3), np.uint8),
        captions={},
        prompts=prompts,
        duplication=None,
        metrics=None,
    )


SCORES = {
    "embedder": "sscd",
    "protocol": "short side 288",
    "protocols": {"sscd": "short side 288", "pixels": "as they are"},
    "num_generations": 4000,
    "num_references": 10_000,
    "dataset_similarity": 0.6,
    "dataset_similarity_ci95": [0.5, 0.7],
    "prompted_image_hits": 0.2,
    "num_clusters": 40,
    "search_backend": "scann",
    "search_settings": {"leaves": 100},
    "search_recall": 0.996,
    "fid": 17.1,
    "quality_protocol": "clean, 299 px",
}
SETTINGS = {
    "eval.prompts": "random",
    "eval.sampler": "ddim",
    "eval.num_inference_steps": 50,
    "eval.guidance_scale": 7.5,
    "eval.seed": 3,
}
PROMPTS = pd.DataFrame(
    {"id": ["0", "1"], "prompt": "x", "seed": [3, 4], "example_id": "r"}
)


def test_every_setting_that_is_known_is_stated():
    card = write_metrics_card(run_of(SCORES, SETTINGS, PROMPTS))
    for text in (
        "4,000 generations and 10,000 training images",
        "captions of training images drawn at random",
        "the ddim sampler, 50 steps, guidance scale 7.5 and seeds 3 and 4",
        "sscd (short side 288) and pixels (as they are); the first gives the headline",
        "scann search (leaves 100), recall 0.996",
        "FID is between Gaussians fitted to features of Inception (clean, 299 px)",
        "percentile bootstrap with 2,000 resamples of the 40 groups of generations",
        f"copymit {copymit.__version__}.",
    ):
        assert text in card
    assert "\n" not in card


def test_what_is_not_known_is_not_stated():
    card = write_metrics_card(run_of({}))
    assert card == (
        "The generations were not made by copymit. "
        f"Measured with copymit {copymit.__version__}."
    )


def test_sampling_settings_that_were_not_used_are_not_stated():
    card = write_metrics_card(run_of(SCORES, SETTINGS, prompts=None))
    assert "ddim" not in card
    assert "guidance" not in card


def test_scores_of_each_measure_say_how_it_is_done():
    extra = {"clip_score": 0.3, "tile_l2_mean": 0.4, "cmmd": 0.5, "kid": 0.1}
    card = write_metrics_card(run_of(SCORES | extra))
    for text in ("CLIP score", "tiled distance:", "CMMD", "unbiased squared MMD"):
        assert text in card
        assert text not in write_metrics_card(run_of(SCORES))
