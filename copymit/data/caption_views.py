"""A source seen otherwise: with fewer captions of each image, or with classes made of them.

In: an `ExampleSource`. Out: another with the same images in the same order.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from copymit.data.examples import Example, ExampleSource

_MAX_IMAGES = 50_000  # clustered at once: 200 MB of word counts
_MAX_WORDS = 1_000
_COMMON = 0.3  # a word in the captions of a larger share of the images tells nothing
_NAME_WORDS = 2
_MAX_ROUNDS = 50


class CaptionView:
    """A source with other captions or classes.

    Args:
      num_captions: that are kept of each image, the first ones; 0 = all.
      classes: names, and of each image its class; None = those of the source.
    """

    def __init__(
        self,
        source: ExampleSource,
        num_captions: int = 0,
        classes: "CaptionClusters | None" = None,
    ):
        self.source = source
        self._kept = num_captions or None
        counts = source.caption_counts
        self.example_ids: Sequence[str] = source.example_ids
        self.caption_counts = np.minimum(counts, num_captions) if self._kept else counts
        self.labels = classes.labels if classes else source.labels
        self.class_names: Sequence[str] = (
            classes.names if classes else source.class_names
        )
        self.provenance = source.provenance

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Example:
        example = self.source[index.__index__()]
        label = int(self.labels[index.__index__()])
        return example._replace(
            captions=example.captions[: self._kept], label=label if label >= 0 else None
        )


class CaptionClusters(NamedTuple):
    """Images by what their captions are about.

    Attributes:
      labels: cluster of each image; -1 for one without a word that tells any.
      names: the words by which each differs most from all, such as "dog grass".
    """

    labels: Int[np.ndarray, " N"]
    names: tuple[str, ...]


def view_captions(
    source: ExampleSource, num_captions: int = 0, clusters: int = 0
) -> ExampleSource:
    """Returns the source with the first captions of each image alone, and with classes.

    Args:
      num_captions: 0 = all.
      clusters: of captions, that become the classes; 0 = the classes of the source.
    Raises:
      ValueError: for negative numbers, or captions that cannot be clustered.
    """
    if min(num_captions, clusters) < 0 or clusters == 1:
        raise ValueError(
            f"data.num_captions={num_captions} must be at least 0, "
            f"data.caption_clusters={clusters} 0 or at least 2"
        )
    if not num_captions and not clusters:
        return source
    found = None
    if clusters:
        if len(source) > _MAX_IMAGES:
            raise ValueError(
                f"data.caption_clusters={clusters}: captions of {len(source)} images "
                f"are more than the {_MAX_IMAGES} that are clustered: sort the images "
                "into one folder per class"
            )
        texts = [" ".join(source[i].captions) for i in range(len(source))]
        found = cluster_captions(texts, clusters)
    return CaptionView(source, num_captions, found)


def cluster_captions(texts: Sequence[str], count: int) -> CaptionClusters:
    """Divides texts by their words: k-means of unit tf-idf vectors, always the same.

    Raises:
      ValueError: if there are fewer different texts than clusters.
    """
    from scipy.cluster.vq import kmeans2  # slow to import, and few need it

    words, rows = _weigh_words(texts)
    different = np.unique(rows[rows.any(axis=1)], axis=0)
    if len(different) < count:
        raise ValueError(
            f"data.caption_clusters={count}: the captions are only {len(different)} "
            "different sets of words: ask for fewer clusters, or give captions"
        )
    # Of unit vectors the nearest centre is, but for the centres' lengths, the most alike.
    start = kmeans2(different, count, iter=1, minit="++", rng=0)[0]
    centres, labels = kmeans2(rows, start, iter=_MAX_ROUNDS, minit="matrix")
    special = centres - rows.mean(axis=0)
    best = np.argsort(-special, axis=1, kind="stable")[:, :_NAME_WORDS]
    names = tuple(" ".join(words[i] for i in chosen) for chosen in best)
    labels[~rows.any(axis=1)] = -1
    return CaptionClusters(labels.astype(np.int32), names)


def _weigh_words(texts: Sequence[str]) -> tuple[list[str], Float[np.ndarray, "N V"]]:
    """Returns the words that tell texts apart, and a unit vector of each text."""
    found = [_words(text) for text in texts]
    counts = Counter(word for words in found for word in words)
    most = max(_COMMON * len(texts), 2)
    telling = [w for w in counts if 2 <= counts[w] <= most] or list(counts)
    vocabulary = sorted(telling, key=lambda w: (-counts[w], w))[:_MAX_WORDS]
    places = {word: i for i, word in enumerate(vocabulary)}
    rows = np.zeros((len(texts), len(vocabulary)), np.float32)
    for row, words in zip(rows, found, strict=True):
        for word in words & places.keys():
            row[places[word]] = np.log(1 + len(texts) / counts[word])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return vocabulary, rows / np.maximum(lengths, 1e-12)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", text.casefold()))
