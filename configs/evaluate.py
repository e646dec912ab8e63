"""Measures folders of images that copymit did not make: only the `eval` section counts.

    python evaluate.py --config=configs/evaluate.py --workdir=runs/audit \\
        --generations=DIR --references=DIR

Cost: on two CPU cores about 40 images a second with EfficientNet-Lite0, and 16 with SSCD,
which is the default for images of at least 64 px.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Returns the defaults."""
    return common.get_config()
