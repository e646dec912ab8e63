"""Fine-tunes Stable Diffusion 2.1 on 100,000 images of LAION, as the paper does.

    python train.py --config=configs/laion100k.py --workdir=gs://BUCKET/laion100k

With an argument, the same with one change (several are joined by commas):
`text_encoder`, `from_scratch` or `small`; see configs/imagenette.py.

`data.source` is a folder of images, `data.captions` a JSON file {relative path:
[captions]} with the original caption first and BLIP's after it. Cost: 100,000 steps of
batch 16 at 256 px.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings of the paper's LAION-100k runs."""
    config = paper.get_config(arg)
    config.data.source = "data/laion100k"
    config.data.captions = "data/laion100k_captions.json"
    config.data.num_examples = 100_000
    config.eval.num_generations = 10_000
    return config
