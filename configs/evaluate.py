"""Measures folders of images that copymit did not make: only the `eval` section counts.

    python evaluate.py --config=configs/evaluate.py --workdir=runs/audit \\
        --generations=DIR --references=DIR

Cost: about 40 images a second on two CPU cores with EfficientNet-Lite0.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Returns the defaults."""
    return common.get_config()
