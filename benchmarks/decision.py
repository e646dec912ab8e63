"""How often a decision on a generation is wrong, and how many copies it finds.

    python -m benchmarks.decision IMAGENETTE.tar FLICKR8K.tar docs/decisions.md CACHE

The archives hold photos, CACHE keeps their features. Real photos stand for a model's
images, those of the set itself for what it was trained on: some are duplicated, some come
back altered, the other generations are photos that were never trained on. Everything is
drawn again for every seed. Prints the tables and writes them.
"""

from typing import NamedTuple

EMBEDDERS = ("sscd_288_int8", "efficientnet_lite0")
RATE = 0.01
NEIGHBOURS = 11
SEEDS = 20


class Case(NamedTuple):
    """What is drawn for a simulation.

    Attributes:
      trained: training photos, before some are duplicated.
      heldout: photos known never to have been trained on; 0 takes the training photos.
      generations: in all.
      copied: share of the generations that are altered training photos.
      duplicated: share of the training photos that are there twice, every other time
        altered.
      one_class: whether generations that are no copies are of one class.
    """

    trained: int
    heldout: int = 0
    generations: int = 200
    copied: float = 0.0
    duplicated: float = 0.0
    one_class: bool = False
