"""DINOv2 as an embedder: general features that were learned without captions.

In: the name of a DINOv2 and published weights. Out: an embedder under the preprocessing
of the published processor.
"""

from dataclasses import replace
from typing import NamedTuple

from copymit.embedding.embedder import Embedder
from copymit.embedding.preprocessing import CropPreset
from copymit.embedding.resizing import Resample
from copymit.models.dinov2 import (
    DINOV2_VITB14,
    DINOV2_VITL14,
    DINOV2_VITS14,
    Dinov2Config,
    Dinov2Model,
)
from copymit.models.functional import make_apply
from copymit.pretrained.embedders import load_dinov2

PRESET = CropPreset(
    256, 224, Resample.BICUBIC, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)


class Dinov2(NamedTuple):
    """A published DINOv2: its title, what its weights must be of, and a hub id."""

    title: str
    config: Dinov2Config
    hub_id: str


DINOV2_MODELS = {
    "dinov2_vits14": Dinov2("DINOv2 ViT-S/14", DINOV2_VITS14, "facebook/dinov2-small"),
    "dinov2_vitb14": Dinov2("DINOv2 ViT-B/14", DINOV2_VITB14, "facebook/dinov2-base"),
    "dinov2_vitl14": Dinov2("DINOv2 ViT-L/14", DINOV2_VITL14, "facebook/dinov2-large"),
}


def make_dinov2(name: str, weights: str = "") -> Embedder:
    """Loads a DINOv2.

    Args:
      name: key of `DINOV2_MODELS`.
      weights: folder, `gs://` folder or hub id in transformers' layout, or a file of
        facebookresearch/dinov2 such as `dinov2_vits14_pretrain.pth`; "" is the one on
        the hub. Features of the two differ slightly: the original code scales position
        embeddings by (16 + 0.1) / 37, transformers by 16 / 37, and each is followed.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: the name is not known, or the
        weights cannot be opened or are of another model.
    """
    if name not in DINOV2_MODELS:
        raise ValueError(
            f"{name!r} is not a DINOv2: use one of {', '.join(DINOV2_MODELS)}"
        )
    title, wanted, hub_id = DINOV2_MODELS[name]
    config, params, origin = load_dinov2(weights or hub_id)
    if replace(config, position_offset=wanted.position_offset) != wanted:
        raise ValueError(
            f"{weights or hub_id} is not {title}, which {name} needs: it is {config}, "
            f"not {wanted}. Give other weights or another name"
        )
    network = make_apply(lambda rngs: Dinov2Model(config, rngs=rngs))

    def apply(params, images):
        return network(params, PRESET.normalise(images))

    protocol = (
        f"{title} without registers, weights {origin}; {PRESET.text}; position "
        f"embeddings interpolated (bicubic, not antialiased, offset "
        f"{config.position_offset:g}); float32; class token after the final layer norm"
    )
    return Embedder(name, protocol, PRESET.prepare, params, apply)
