"""Random draws of examples that depend on the seed and their ids, and on nothing else.

In: a seed and ids. Out: an order. The same ids in another order, in more or fewer files, or
among others, are drawn in the same order.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

KEY_BYTES = 12  # among a billion examples two are alike with a chance of 1e-11


def draw_key(seed: int, example_id: str, purpose: str = "") -> bytes:
    """Returns an example's place in a draw: 24 hexadecimal digits, in the order of texts.

    Args:
      purpose: of the draw; draws for different purposes are independent.
    """
    # As macOS splits accents, a file's name may change with the disk it lies on.
    name = unicodedata.normalize("NFC", example_id)
    text = f"{seed} {purpose} {name}" if purpose else f"{seed} {name}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest().encode()


def draw_order(
    seed: int, example_ids: Sequence[str], purpose: str = ""
) -> Int[np.ndarray, " N"]:
    """Returns the positions of the ids in the order in which they are drawn."""
    keys = [draw_key(seed, example_id, purpose) for example_id in example_ids]
    order = np.argsort(np.array(keys, f"S{2 * KEY_BYTES}"), kind="stable")
    return order.astype(np.int64)
