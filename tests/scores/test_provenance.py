import numpy as np
import pandas as pd

from copymit.scores.bootstrap import bootstrap_ci, mean
from copymit.scores.provenance import dependent_clusters, trace_provenance

REFERENCES = ["a", "b", "c"]


def table(prompts, images=None):
    ids = [str(i) for i in range(len(prompts))]
    columns = {"id": ids, "prompt": prompts}
    return pd.DataFrame(columns | ({} if images is None else {"example_id": images}))


def trace(prompts, images=None):
    prompts = table(prompts, images)
    return trace_provenance(prompts, list(prompts["id"]), REFERENCES, None)


def test_images_of_one_prompt_are_one_cluster_also_where_no_image_is_known():
    """Ten prompts with twenty near-identical images each are ten observations."""
    rng = np.random.default_rng(3)
    values = np.repeat(rng.normal(0.3, 0.25, 10), 20) + rng.normal(0, 0.01, 200)
    found = trace([f"prompt {i // 20}" for i in range(200)])
    assert found.prompted is None

    def width(clusters):
        low, high = bootstrap_ci(values, {"mean": mean}, clusters)["mean"]
        return high - low

    # Twenty equal values count once: sqrt(20) of the width, about.
    assert 3.5 < width(found.clusters) / width(None) < 5.5


def test_what_is_known_of_some_prompts_is_kept():
    found = trace(["x", "x", "y", "y", "z"], ["a", "a", None, np.nan, "unreadable"])
    assert found.prompted.tolist() == [0, 0, -1, -1, -1]
    assert found.clusters.tolist() == [0, 0, 1, 1, 2]


def test_one_caption_of_several_images_does_not_join_them():
    found = trace(["An image"] * 3, ["a", "b", "b"])
    assert found.prompted.tolist() == [0, 1, 1]
    assert found.clusters.tolist() == [0, 1, 1]


def test_generations_without_a_prompt_are_independent():
    assert dependent_clusters(None, ["", None, "x", "x"]).tolist() == [0, 1, 2, 2]
    assert trace_provenance(None, ["0"], REFERENCES, None).clusters is None


def test_the_order_is_that_of_the_generations_that_could_be_read():
    prompts = table(["x", "y", "z"], ["a", "b", "c"])
    found = trace_provenance(prompts, ["2", "0"], REFERENCES, np.ones(3, bool))
    assert found.prompted.tolist() == [2, 0]
    assert found.duplicated.tolist() == [True] * 3
