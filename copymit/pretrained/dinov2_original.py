"""Checkpoints of facebookresearch/dinov2 -> names of the Hugging Face hub, and a config.

Those files have neither: the config is read off the shapes.
"""

import re
from collections.abc import Mapping

import numpy as np

from copymit.models.dinov2 import Dinov2Config

# Of all sizes that were published.
_HEAD_DIM = 64
_HUB_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_HUB_PARTS = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_BLOCK = re.compile(r"blocks\.(?P<layer>\d{1,2})\.(?P<part>.+)", re.ASCII)
_QKV = re.compile(r"attn\.qkv\.(?P<leaf>weight|bias)")


def to_hub_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the tensors of a checkpoint of facebookresearch/dinov2.

    Query, key and value are one tensor there. Names that are not known are passed on,
    for a strict loader to refuse.
    """
    renamed = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            renamed[_rename(name, _HUB_NAMES)] = tensor
            continue
        owner = f"encoder.layer.{int(block['layer'])}"
        qkv = _QKV.fullmatch(block["part"])
        if qkv is None:
            renamed[f"{owner}.{_rename(block['part'], _HUB_PARTS)}"] = tensor
            continue
        # A length that three does not divide is for the loader to refuse, too.
        third = len(tensor) // 3
        for i, part in enumerate(("query", "key", "value")):
            stop = None if part == "value" else (i + 1) * third
            renamed[f"{owner}.attention.attention.{part}.{qkv['leaf']}"] = tensor[
                i * third : stop
            ]
    return renamed


def _rename(name: str, table: Mapping[str, str]) -> str:
    """Translates a name, or what precedes its last dot."""
    owner, dot, leaf = name.rpartition(".")
    return table.get(name) or table.get(owner, owner) + dot + leaf


def config_of_original(shapes: Mapping[str, tuple[int, ...]]) -> Dinov2Config:
    """Reads off the shapes of an original checkpoint what it is of.

    Raises:
      ValueError: if it is of another architecture; says which, if that is known.
    """
    if "register_tokens" in shapes:
        raise ValueError(
            "it has register tokens: only DINOv2 without registers can be read, such as "
            "dinov2_vits14_pretrain.pth"
        )
    if any(name.endswith("mlp.w12.weight") for name in shapes):
        raise ValueError(
            "it has SwiGLU layers, as DINOv2 ViT-g/14 does: use ViT-S/14, B/14 or L/14"
        )
    wanted = {
        "pos_embed": 3,
        "patch_embed.proj.weight": 4,
        "blocks.0.mlp.fc1.weight": 2,
    }
    for name, dims in wanted.items():
        if len(shapes.get(name, ())) != dims or 0 in shapes[name]:
            raise ValueError(
                f"it has no {name} of {dims} axes: only checkpoints of "
                "facebookresearch/dinov2 can be read, such as "
                "dinov2_vits14_pretrain.pth"
            )
    _, positions, width = shapes["pos_embed"]
    blocks = {match["layer"] for name in shapes if (match := _BLOCK.fullmatch(name))}
    patch_size = shapes["patch_embed.proj.weight"][-1]
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=max(1, width // _HEAD_DIM),
        mlp_ratio=max(1, shapes["blocks.0.mlp.fc1.weight"][0] // width),
        image_size=round((positions - 1) ** 0.5) * patch_size,
        patch_size=patch_size,
        position_offset=0.1,
    )
