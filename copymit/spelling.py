"""What somebody meant who wrote a name that there is not."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], before: str = "") -> str:
    """Asks for the likeliest of the known names, to end a message with.

    The name may be a part of a known one (`2-1`), or lack what stands before the last dot
    (`stepz` of `train.steps`).

    Args:
      before: what every name is written after, as `--config.`.
    Returns:
      `; did you mean NAME?`, or nothing where none is like it.
    """
    names = list(dict.fromkeys(known))
    found = difflib.get_close_matches(word, names, n=1)
    if not found:
        short = {name.rpartition(".")[2]: name for name in reversed(names)}
        last = word.rpartition(".")[2]
        found = [short[s] for s in difflib.get_close_matches(last, short, n=1)]
    if not found:
        found = [name for name in names if word and word in name][-1:]
    return f"; did you mean {before}{found[0]}?" if found else ""
