import numpy as np
import pytest

from copymit.analysis.captions import (
    CAPTION_NGRAMS,
    choose_caption_embedder,
    make_caption_features,
    normalise_caption,
)
from copymit.embedding.embed import embed_texts
from copymit.embedding.store import EmbeddingStore, load_embeddings

CAPTIONS = [
    "a man in a red jacket skis down a steep hill",
    "a man in a red jacket skis down the steep hill",
    "two dogs play with a ball on the beach",
    "a child climbs a wall of ropes",
    "x",
    "犬",
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A dog.", "a  DOG"),
        ("snow_leopard", "Snow leopard!"),
        ("Straße", "STRASSE"),
        ("ﬁne art", "fine art"),
        (" tea,\tcup\n", "tea cup"),
    ],
)
def test_case_punctuation_and_space_do_not_matter(one, other):
    assert normalise_caption(one) == normalise_caption(other)


def test_words_and_their_order_matter():
    assert normalise_caption("dog bites man") != normalise_caption("man bites dog")


def test_captions_of_nothing_but_punctuation_stay_apart():
    assert normalise_caption("!!!") != normalise_caption("???")


def test_similar_spelling_is_near_and_other_captions_are_not():
    rows = make_caption_features(CAPTION_NGRAMS, CAPTIONS, {}).compute(CAPTIONS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    cosines = rows @ rows.T
    assert cosines[0, 1] > 0.8
    others = np.delete(cosines[0], [0, 1])
    # hashing to 1,024 places adds noise of about 1/32
    assert others.max() < 0.25


def test_weights_of_a_clip_choose_it():
    assert choose_caption_embedder("", {}) == CAPTION_NGRAMS
    assert choose_caption_embedder("", {"clip_vit_l14": "folder"}) == "clip_vit_l14"
    assert choose_caption_embedder(CAPTION_NGRAMS, {"clip_vit_l14": "folder"}) == (
        CAPTION_NGRAMS
    )


def test_stored_captions_are_computed_once(tmp_path):
    features = make_caption_features(CAPTION_NGRAMS, CAPTIONS, {})
    store = EmbeddingStore(tmp_path)
    texts = {text: text for text in CAPTIONS}
    embed_texts(features.compute, features.protocol, texts, store)
    embed_texts(None, features.protocol, texts, store)
    assert load_embeddings(store).ids == CAPTIONS
