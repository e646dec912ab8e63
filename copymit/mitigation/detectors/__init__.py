"""Detectors of memorised prompts, one a file.

Each holds `DETECTORS`, which it makes of what `observation` has. All are oriented alike:
**the higher, the likelier memorised**.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from copymit.mitigation.observation import Observation


class Detector(NamedTuple):
    """A detector: one number of each prompt and initial noise, averaged over noises.

    Attributes:
      name: as in `detection.json`.
      title: for readers of a table.
      source: paper and code, and what is different here.
      order: among the others.
      measure: (observation, options of the detection) -> one number a prompt.
    """

    name: str
    title: str
    source: str
    order: int
    measure: Callable[[Observation, Any], Float[Array, " B"]]


def all_detectors() -> dict[str, Detector]:
    """Reads every file of this folder."""
    found: list[Detector] = []
    for file in pkgutil.iter_modules(__path__):
        found += importlib.import_module(f"{__name__}.{file.name}").DETECTORS
    return {d.name: d for d in sorted(found, key=lambda d: (d.order, d.name))}
