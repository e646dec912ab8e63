"""Fewer captions of an image, and classes made of captions."""

import numpy as np
import pytest

from configs import tiny
from copymit.data.caption_views import cluster_captions, view_captions
from copymit.data.dataset import load_dataset, make_captions
from copymit.data.examples import Example, Provenance, describe_captions
from copymit.data.tokenizer import make_tokenizer

DOGS = [f"a {w} dog runs over grass" for w in ("brown", "black", "small", "wet")]
SEA = [f"the {w} surfer rides waves" for w in ("young", "tall", "old", "tanned")]


class Source:
    class_names = ()
    provenance = Provenance("a test")

    def __init__(self, captions):
        self._captions = [tuple(texts) for texts in captions]
        self.example_ids = [f"{i}.png" for i in range(len(captions))]
        self.labels = np.full(len(captions), -1, np.int32)
        self.caption_counts = np.array([len(c) for c in self._captions], np.int32)

    def __len__(self):
        return len(self._captions)

    def __getitem__(self, index):
        return Example(self.example_ids[index], b"", self._captions[index], None)


def test_only_the_first_captions_are_seen():
    source = Source([["a", "b", "c"], ["d"], []])
    view = view_captions(source, num_captions=2)
    assert [view[i].captions for i in range(3)] == [("a", "b"), ("d",), ()]
    assert view.caption_counts.tolist() == [2, 1, 0]
    assert (
        describe_captions(view) == "captions: 2 of 3 images, 1 to 2 each, from a test"
    )
    assert view_captions(source) is source


@pytest.mark.parametrize("order", [DOGS + SEA, SEA[:2] + DOGS + SEA[2:]])
def test_captions_about_the_same_are_one_class(order):
    clusters = cluster_captions(order, 2)
    kinds = {text: clusters.labels[i] for i, text in enumerate(order)}
    assert len({kinds[text] for text in DOGS}) == 1
    assert len({kinds[text] for text in SEA}) == 1
    assert kinds[DOGS[0]] != kinds[SEA[0]]
    named = clusters.names[kinds[DOGS[0]]]
    assert set(named.split()) <= {"dog", "runs", "over", "grass"}
    again = cluster_captions(order, 2)
    assert again.names == clusters.names
    assert np.array_equal(again.labels, clusters.labels)


def test_an_image_without_words_has_no_class():
    view = view_captions(Source([*([t] for t in DOGS + SEA), []]), clusters=2)
    assert view[8].label is None
    assert {view[i].label for i in range(8)} == {0, 1}


@pytest.mark.parametrize(
    ("captions", "clusters", "message"),
    [
        (["dog"] * 3, 2, "only 1 different"),
        (DOGS, 1, "0 or at least 2"),
        (DOGS, -1, "0"),
    ],
)
def test_what_cannot_be_clustered_is_said(captions, clusters, message):
    with pytest.raises(ValueError, match=message):
        view_captions(Source([[text] for text in captions]), clusters=clusters)


def test_a_run_sees_the_same_images_with_classes_of_captions():
    """The embedded set is drawn by position: a view must not change which are drawn."""
    config = tiny.get_config()
    plain = load_dataset(config.data, 0)
    config.data.caption_style, config.data.caption_clusters = "class", 3
    clustered = load_dataset(config.data, 0)
    assert clustered.example_ids == plain.example_ids
    assert np.array_equal(
        clustered.duplication.duplicated, plain.duplication.duplicated
    )
    caption = make_captions(config.data, clustered.source, make_tokenizer(16), 0)
    example = clustered.source[int(clustered.indices[0])]
    assert caption(example, False, np.random.default_rng(0)) in {
        f"An image of {name}" for name in clustered.source.class_names
    }
