"""Captions as vectors, to find those that say the same: texts in, unit vectors out.

Without a downloaded network, `caption_ngrams` compares spelling: letters in a row,
weighted by how rare they are in the data set. It knows nothing of meaning.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt64

from copymit.embedding.clip import CLIP_MODELS, embed_captions, make_clip_captions
from copymit.embedding.store import unit_rows

CAPTION_NGRAMS = "caption_ngrams"
_LENGTHS = (3, 4, 5)  # of n-grams, in bytes of UTF-8
_TABLE_BITS = 18  # of the table that counts in how many captions an n-gram occurs
_NUM_FEATURES = 1024
_MAX_BYTES = 4096  # of a caption that are looked at


class CaptionFeatures(NamedTuple):
    """A way to compare captions.

    Attributes:
      name: `caption_ngrams` or that of a CLIP.
      protocol: in words, everything that could change a number.
      compute: captions -> unit vectors.
    """

    name: str
    protocol: str
    compute: Callable[[Sequence[str]], Float[np.ndarray, "Q D"]]


def normalise_caption(caption: str) -> str:
    """Drops case, punctuation and repeated space: captions that differ only so are one.

    Captions of nothing but punctuation keep it.
    """
    text = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", text).split()) or " ".join(text.split())


def choose_caption_embedder(name: str, weights: Mapping[str, str]) -> str:
    """Returns `name`, or for "" the first CLIP that has weights, or `caption_ngrams`.

    Raises:
      ValueError: for an unknown name.
    """
    if not name:
        given = (n for n, model in CLIP_MODELS.items() if weights.get(model.weights))
        return next(given, CAPTION_NGRAMS)
    if name != CAPTION_NGRAMS and name not in CLIP_MODELS:
        raise ValueError(
            f"caption_embedder={name!r} is not known: use {CAPTION_NGRAMS}, "
            f"{', '.join(CLIP_MODELS)}"
        )
    return name


def make_caption_features(
    name: str, captions: Sequence[str], weights: Mapping[str, str]
) -> CaptionFeatures:
    """Loads a CLIP, or counts n-grams in all captions of the data set.

    Raises:
      FileNotFoundError, ValueError, ConnectionError: weights cannot be loaded.
    """
    if name == CAPTION_NGRAMS:
        return _make_ngrams(captions)
    clip = make_clip_captions(name, weights.get(CLIP_MODELS[name].weights, ""))
    return CaptionFeatures(
        name, clip.protocol, lambda texts: unit_rows(embed_captions(clip, texts))
    )


def _make_ngrams(captions: Sequence[str]) -> CaptionFeatures:
    """Weights n-grams by rarity, and adds them up in a vector at hashed places.

    Source: tf-idf as usual; places and signs from a hash as in Weinberger et al.,
      Feature Hashing for Large Scale Multitask Learning, 2009.
    """
    counts = np.zeros(2**_TABLE_BITS, np.int64)
    for caption in captions:
        counts[np.unique(_hash_ngrams(caption) >> np.uint64(64 - _TABLE_BITS))] += 1
    rarity = np.log((1 + len(captions)) / (1 + counts)) + 1

    def compute_one(caption: str) -> np.ndarray:
        hashes = _hash_ngrams(caption)
        weights = rarity[hashes >> np.uint64(64 - _TABLE_BITS)]
        signs = 1.0 - 2.0 * (hashes >> np.uint64(32) & np.uint64(1)).astype(float)
        places = (hashes & np.uint64(_NUM_FEATURES - 1)).astype(np.int64)
        row = np.bincount(places, weights * signs, minlength=_NUM_FEATURES)
        if not row.any():  # all signs have cancelled: rather one place than none
            row[places[0]] = 1
        return row

    digest = hashlib.sha256(counts.tobytes()).hexdigest()[:12]
    protocol = (
        f"{_LENGTHS[0]} to {_LENGTHS[-1]} bytes in a row of the caption without case, "
        f"punctuation and repeated space, weighted by rarity among {len(captions)} "
        f"distinct captions (sha256 {digest}), hashed with signs to {_NUM_FEATURES} "
        "numbers: spelling, not meaning"
    )
    return CaptionFeatures(
        CAPTION_NGRAMS,
        protocol,
        lambda texts: unit_rows(np.stack([compute_one(text) for text in texts])),
    )


def _hash_ngrams(caption: str) -> UInt64[np.ndarray, " N"]:
    """Hashes every n-gram of a caption, spaces at both ends included; never empty."""
    data = np.frombuffer(f" {caption} ".encode()[:_MAX_BYTES].ljust(3), np.uint8)
    hashes = []
    for length in _LENGTHS:
        count = len(data) - length + 1
        if count < 1:
            break
        value = np.full(count, length, np.uint64)
        for i in range(length):
            value = value * np.uint64(257) + data[i : i + count]
        hashes.append(_mix(value))
    return np.concatenate(hashes)


def _mix(value: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Spreads numbers over all 64 bits. Source: the finaliser of SplitMix64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
