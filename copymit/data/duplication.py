"""Which training examples are duplicated, and how much: a table made before training.

Enters: the examples of a run and the duplication settings. Leaves: one weight per
example, kept in the run's `duplication.parquet` for the evaluation and the auditor.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from copymit.data.draw import draw_order

DuplicationKind = Literal["none", "partial", "full"]


class Duplication(NamedTuple):
    """How often each example is drawn, relative to an ordinary one.

    Attributes:
      weights: 1 for an ordinary example, the duplication factor for a duplicated one.
      duplicated: whether the example was chosen for duplication. With a factor of 1
        nothing is repeated, but the chosen examples are still marked: the control.
    """

    weights: Int[np.ndarray, " N"]
    duplicated: Bool[np.ndarray, " N"]


def assign_duplication(
    example_ids: Sequence[str],
    kind: DuplicationKind,
    duplicated_fraction: float,
    duplication_factor: int,
    seed: int,
    *,
    by_position: bool = False,
) -> Duplication:
    """Chooses the duplicated examples uniformly without replacement.

    Args:
      example_ids: which are chosen depends on them and not on their order.
      kind: `none`, `partial` (the image is repeated, its captions vary) or `full`
        (image and caption are repeated together). The draw is the same for all kinds
        but `none`, so runs that differ in kind duplicate the same images.
      duplicated_fraction: share of the examples in [0, 1]; 0.05 in the paper.
      duplication_factor: at least 1, whole; 5 in the original code.
      by_position: draws positions, as for the embedded set, whose order is its own.
    Raises:
      ValueError: for a value out of its range, or a fraction that rounds to no example.
    Source: Somepalli et al. 2023, section on duplication; `weight_pc` and `dup_weight`
      of the original code, which seeded this draw with nothing.
    """
    if kind not in get_args(DuplicationKind):
        raise ValueError(
            f"data.duplication={kind!r} is not known: use one of "
            f"{', '.join(get_args(DuplicationKind))} (the original code's nodup, "
            "dup_image and dup_both)"
        )
    num_examples = len(example_ids)
    weights = np.ones(num_examples, np.int64)
    duplicated = np.zeros(num_examples, bool)
    if kind == "none":
        return Duplication(weights, duplicated)
    if not 0 < duplicated_fraction <= 1:
        raise ValueError(
            f"data.duplicated_fraction={duplicated_fraction} must lie in (0, 1] when "
            f"data.duplication={kind!r}"
        )
    if duplication_factor < 1:
        raise ValueError(
            f"data.duplication_factor={duplication_factor} must be at least 1"
        )
    count = round(duplicated_fraction * num_examples)
    if count == 0:
        raise ValueError(
            f"data.duplicated_fraction={duplicated_fraction} of {num_examples} examples "
            "is less than one image: raise it, or set data.duplication='none'"
        )
    if by_position:
        rng = np.random.default_rng([seed, 0xD0B1E])
        chosen = rng.choice(num_examples, size=count, replace=False)
    else:
        chosen = draw_order(seed, example_ids, "duplicated")[:count]
    duplicated[chosen] = True
    weights[chosen] = duplication_factor
    return Duplication(weights, duplicated)


def duplication_table(
    example_ids: list[str], duplication: Duplication, caption_counts: np.ndarray
) -> pa.Table:
    """Lays the assignment out as the columns of `duplication.parquet`."""
    return pa.table(
        {
            "example_id": example_ids,
            "weight": duplication.weights,
            "duplicated": duplication.duplicated,
            "caption_count": np.asarray(caption_counts, np.int64),
        }
    )
