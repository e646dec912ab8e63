"""Random token addition (RT): random tokens among the words of a caption or a prompt."""

import numpy as np

from copymit.data.captions import RANDOM_TOKEN_LIMIT
from copymit.mitigation.record import Mitigation, Setting
from copymit.mitigation.rewriting import Decode, Rewrite, in_a_share, insert_word

NUM_INSERTIONS = Setting(
    "train.num_insertions", 2, "tokens or words inserted into a caption", 1, 1000
)


def random_tokens(count: int, decode: Decode) -> Rewrite:
    """Inserts random tokens, each at a uniform gap between words.

    Args:
      count: of insertions.
      decode: token ids to text.
    """

    def insert(text: str, rng: np.random.Generator) -> str:
        for _ in range(count):
            token = decode([int(rng.integers(RANDOM_TOKEN_LIMIT))])
            text = insert_word(text, token, rng)
        return text

    return insert


MITIGATIONS = (
    Mitigation(
        "random_tokens",
        ("RT", "randwordadd"),
        "two random tokens inserted into some captions",
        (
            Setting(
                "train.random_tokens", 0.0, "share of the visits with inserted tokens"
            ),
            NUM_INSERTIONS,
        ),
        strength=0.1,
        published="2 tokens, 0.1 of the visits",
        changed="",
        source="Somepalli et al. 2023; `randwordadd` of somepago/DCR",
        label="RT",
        tried=(0.1, 0.4),
        needs=frozenset(
            {"captions of images", "captions that are embedded while training"}
        ),
        caption=lambda values, words: in_a_share(
            values["random_tokens"],
            random_tokens(values["num_insertions"], words.decode),
        ),
    ),
    Mitigation(
        "generation_tokens",
        ("RTI", "rand_word_add"),
        "at inference: random tokens inserted into the prompt",
        (
            Setting(
                "generate.random_tokens",
                0,
                "random tokens inserted into a prompt",
                0,
                1000,
            ),
        ),
        strength=2,
        published="2 tokens; 4 for known memorised prompts",
        changed="",
        source="Somepalli et al. 2023; `rand_word_add` of somepago/DCR",
        label="RT",
        tried=(2, 1, 4),
        prompt=lambda values, decode: random_tokens(values["random_tokens"], decode),
    ),
)
