"""Caption word repetition (CWR): words of a caption or a prompt again, elsewhere."""

import numpy as np

from copymit.mitigation.methods.random_tokens import NUM_INSERTIONS
from copymit.mitigation.record import Mitigation, Setting
from copymit.mitigation.rewriting import Rewrite, in_a_share, insert_word


def word_repetition(count: int) -> Rewrite:
    """Inserts words of the caption again, each at a uniform gap between words.

    Args:
      count: of insertions.
    """

    def repeat(text: str, rng: np.random.Generator) -> str:
        words = text.split(" ")
        for _ in range(count):
            word = words[int(rng.integers(len(words)))]
            text = insert_word(text, word, rng)
        return text

    return repeat


MITIGATIONS = (
    Mitigation(
        "word_repetition",
        ("CWR", "wordrepeat"),
        "two words of some captions repeated",
        (
            Setting(
                "train.word_repetition", 0.0, "share of the visits with repeated words"
            ),
            NUM_INSERTIONS,
        ),
        strength=0.1,
        published="2 words, 0.1 of the visits",
        changed="",
        source="Somepalli et al. 2023; `wordrepeat` of somepago/DCR",
        label="CWR",
        tried=(0.1, 0.4),
        needs=frozenset(
            {"captions of images", "captions that are embedded while training"}
        ),
        order=1,
        caption=lambda values, words: in_a_share(
            values["word_repetition"], word_repetition(values["num_insertions"])
        ),
    ),
    Mitigation(
        "generation_repetition",
        ("CWRI", "rand_word_repeat"),
        "at inference: words of the prompt repeated",
        (
            Setting(
                "generate.word_repetition",
                0,
                "words of a prompt repeated in it",
                0,
                1000,
            ),
        ),
        strength=2,
        published="2 words; 4 for known memorised prompts",
        changed="",
        source="Somepalli et al. 2023; `rand_word_repeat` of somepago/DCR",
        label="CWR",
        tried=(2, 1, 4),
        order=1,
        prompt=lambda values, decode: word_repetition(values["word_repetition"]),
    ),
)
