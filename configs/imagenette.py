"""Fine-tunes Stable Diffusion 2.1 on Imagenette, as the paper does (section 3).

    python train.py --config=configs/imagenette.py --workdir=gs://BUCKET/imagenette

With an argument, the same with one change (several are joined by commas):

    --config=configs/imagenette.py:text_encoder   the text encoder is trained, too
    --config=configs/imagenette.py:from_scratch   the UNet starts at random
    --config=configs/imagenette.py:small          minutes on a CPU, with random networks

`data.source` is an unpacked archive of Imagenette (its train folder), `data.captions` a
JSON file {relative path: [captions]}. Cost at full size: 100,000 steps of batch 16 at
256 px; about a day on one A6000 in the original study. Expected
without mitigation: a dataset similarity of 0.6 to 0.7 (others measured 0.65 with the
original code on LAION-10k).
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings of the paper's Imagenette runs."""
    config = paper.get_config(arg)
    config.data.source = "data/imagenette2/train"
    config.data.captions = "data/imagenette_captions.json"
    return config
