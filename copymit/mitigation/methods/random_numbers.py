"""Random number addition (RNA): numbers among the words of a prompt."""

import numpy as np

from copymit.mitigation.record import Mitigation, Setting
from copymit.mitigation.rewriting import Rewrite, insert_word

RANDOM_NUMBER_LIMIT = 100_000


def random_numbers(count: int) -> Rewrite:
    """Inserts random numbers below 100,000, each at a uniform gap between words.

    Args:
      count: of insertions.
    """

    def insert(text: str, rng: np.random.Generator) -> str:
        for _ in range(count):
            number = str(int(rng.integers(RANDOM_NUMBER_LIMIT)))
            text = insert_word(text, number, rng)
        return text

    return insert


MITIGATIONS = (
    Mitigation(
        "generation_numbers",
        ("RNA", "rand_numb_add"),
        "at inference: random numbers inserted into the prompt",
        (
            Setting(
                "generate.random_numbers",
                0,
                "random numbers inserted into a prompt",
                0,
                1000,
            ),
        ),
        strength=2,
        published="2 numbers; 4 for known memorised prompts",
        changed="",
        source="Somepalli et al. 2023; `rand_numb_add` of somepago/DCR",
        label="RNA",
        tried=(2, 1, 4),
        order=2,
        prompt=lambda values, decode: random_numbers(values["random_numbers"]),
    ),
)
