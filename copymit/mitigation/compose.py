"""Which mitigations a config asks for, checked, and as functions for the data pipeline,
the training step and the generator.

In: the `mitigation` section. Out: caption functions and rewrites on the host, functions
of text embeddings on the device. A mitigation that is off costs nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from copymit.data.captions import CaptionFunction
from copymit.mitigation.at_generation import GenerationMitigations, check_mitigations
from copymit.mitigation.embeddings import add_gaussian_noise, mix_embeddings
from copymit.mitigation.prompts import (
    Decode,
    Rewrite,
    in_turn,
    multiple_captions,
    random_caption,
    random_numbers,
    random_tokens,
    rewritten,
    with_probability,
    word_repetition,
)

Perturb = Callable[[jax.Array, jax.Array], jax.Array]
"""(encoder_hidden_states, key) -> encoder_hidden_states."""


class Mitigation(NamedTuple):
    """A mitigation by name.

    Attributes:
      setting: under `mitigation`, what switches it on.
      strength: the paper's, where it is asked for without one.
      largest: that makes sense, or None where at_generation.py has it; 0 is off.
      aliases: in the paper and in the original code.
    """

    setting: str
    strength: float | int | bool
    largest: float | None
    aliases: tuple[str, ...]


MITIGATIONS = {
    "multiple_captions": Mitigation(
        "train.multiple_captions", True, 1, ("MC", "allcaps")
    ),
    "gaussian_noise": Mitigation(
        "train.gaussian_noise", 0.1, 100, ("GN", "rand_noise_lam")
    ),
    "random_caption": Mitigation("train.random_caption", 0.1, 1, ("RC", "randrepl")),
    "random_tokens": Mitigation("train.random_tokens", 0.1, 1, ("RT", "randwordadd")),
    "word_repetition": Mitigation(
        "train.word_repetition", 0.1, 1, ("CWR", "wordrepeat")
    ),
    "embedding_mixup": Mitigation(
        "train.embedding_mixup", 0.1, 100, ("mixup_noise_lam",)
    ),
    "skipping": Mitigation("train.skip_above", 2.0, 1e6, ("Wen", "hard_threshold")),
    "generation_noise": Mitigation(
        "generate.gaussian_noise", 0.1, 100, ("GNI", "rand_noise_lam_inference")
    ),
    "generation_tokens": Mitigation(
        "generate.random_tokens", 2, 1000, ("RTI", "rand_word_add")
    ),
    "generation_repetition": Mitigation(
        "generate.word_repetition", 2, 1000, ("CWRI", "rand_word_repeat")
    ),
    "generation_numbers": Mitigation(
        "generate.random_numbers", 2, 1000, ("RNA", "rand_numb_add")
    ),
    "static_transition": Mitigation(
        "generate.guidance_transition", 500, None, ("STP",)
    ),
    "dynamic_transition": Mitigation(
        "generate.dynamic_transition", True, None, ("DTP",)
    ),
    "opposite_guidance": Mitigation("generate.guidance_before", -2.0, None, ("OG",)),
    "prompt_optimisation": Mitigation(
        "generate.prompt_target", 3.0, None, ("PO", "optim_target_loss")
    ),
    "attention_rescaling": Mitigation(
        "generate.start_attention", 1.25, None, ("CAR", "c1", "miti_mem")
    ),
    "padding_mask": Mitigation(
        "generate.mask_padding", True, None, ("cross_attn_mask",)
    ),
    "noise_selection": Mitigation("generate.noise_candidates", 8, None, ()),
    "noise_optimisation": Mitigation("generate.noise_target", 8.2, None, ("SAIL",)),
    "repulsion": Mitigation("generate.repulsion", 1.0, None, ("AMG", "gd")),
    "despecification": Mitigation("generate.despecification", 13.0, None, ("gs",)),
}


def with_mitigations(config: ConfigDict) -> ConfigDict:
    """Resolves `mitigation.apply` into the settings that it stands for, and checks all.

    Returns:
      A config with `mitigation.apply` empty.
    Raises:
      ValueError: for an unknown name, a strength out of its range, or settings that
        contradict each other.
    """
    config = config.copy_and_resolve_references()
    for asked in config.mitigation.apply:
        name, given, strength = str(asked).partition("=")
        mitigation = _find(name)
        section, key = mitigation.setting.split(".")
        kind = type(config.mitigation[section][key])
        config.mitigation[section][key] = (
            _read_strength(asked, strength, kind) if given else mitigation.strength
        )
    config.mitigation.apply = ()
    _check(config)
    return config


def _read_strength(asked: str, text: str, kind: type) -> Any:
    expected = {bool: "0 or 1", int: "a whole number"}.get(kind, "a number")
    try:
        number = float(text)
        value = kind(number)
    except (ValueError, OverflowError):
        number, value = math.nan, None
    if value != number:
        raise ValueError(f"mitigation.apply: {asked!r}: {text!r} is not {expected}")
    return value


def _find(name: str) -> Mitigation:
    for known, mitigation in MITIGATIONS.items():
        if name in (known, mitigation.setting, *mitigation.aliases):
            return mitigation
    names = "; ".join(
        f"{known} ({', '.join(m.aliases)})" for known, m in MITIGATIONS.items()
    )
    raise ValueError(f"mitigation.apply: {name!r} is not known. Known are {names}")


def _check(config: ConfigDict) -> None:
    check_mitigations(
        generation_mitigations(config.mitigation.generate),
        config.diffusion.num_train_timesteps,
        config.eval.guidance_scale,
    )
    for mitigation in MITIGATIONS.values():
        section, key = mitigation.setting.split(".")
        value = config.mitigation[section][key]
        # The others were checked together, above. What is not a number is not below.
        if mitigation.largest is not None and not 0 <= value <= mitigation.largest:
            raise ValueError(
                f"mitigation.{mitigation.setting}={value} is out of range: use 0 for "
                f"none, or up to {mitigation.largest:g}"
            )
    train = config.mitigation.train
    if train.num_insertions < 1:
        raise ValueError(
            f"mitigation.train.num_insertions={train.num_insertions} must be at least 1"
        )
    if train.num_insertions != 2 and not (train.random_tokens or train.word_repetition):
        raise ValueError(
            f"mitigation.train.num_insertions={train.num_insertions} changes nothing "
            "without random_tokens or word_repetition: set one of them too"
        )
    if train.skip_above and config.data.caption_style == "unconditional":
        raise ValueError(
            f"mitigation.train.skip_above={train.skip_above} compares a caption with the "
            "empty one, and data.caption_style='unconditional' has no other: set it to 0"
        )
    rewrites = [
        name
        for name in ("random_caption", "random_tokens", "word_repetition")
        if train[name]
    ]
    if (
        rewrites or train.multiple_captions
    ) and config.data.caption_style != "instance":
        raise ValueError(
            f"mitigation.train.{(rewrites or ['multiple_captions'])[0]} changes captions "
            f"of images, but data.caption_style={config.data.caption_style!r} does not "
            "use them: set data.caption_style='instance'"
        )
    if rewrites and config.data.cache_embeddings:
        raise ValueError(
            f"mitigation.train.{rewrites[0]} makes captions up while training, so they "
            "cannot be embedded before: set data.cache_embeddings=False"
        )


def check_captions_vary(config: ConfigDict, caption_counts: np.ndarray) -> None:
    """Refuses multiple captions for images of which none has a second one.

    Args:
      caption_counts: of the training images.
    Raises:
      ValueError: says how to get more captions.
    """
    if config.mitigation.train.multiple_captions and caption_counts.max() < 2:
        raise ValueError(
            "mitigation.train.multiple_captions needs images with several captions, and "
            f"each of the {len(caption_counts)} has one: make more with python -m "
            "copymit.data.caption, or give a captions file"
        )


def unused_in_evaluation(asked: ConfigDict, trained: ConfigDict) -> list[str]:
    """Says which mitigations in training are asked for after a training without them.

    Args:
      asked, trained: `mitigation` sections, of the evaluation and of the training.
    Returns:
      For each its setting, and the names of those that act at generation.
    """
    generate = ", ".join(
        f"{name} ({', '.join(m.aliases)})" if m.aliases else name
        for name, m in MITIGATIONS.items()
        if m.setting.startswith("generate.")
    )
    asked_of_training = {
        m.setting: asked.train[key]
        for m in MITIGATIONS.values()
        for section, _, key in (m.setting.partition("."),)
        if section == "train" and asked.train[key] not in (0, trained.train[key])
    }
    return [
        f"mitigation.{setting}={value} acts in training, and this model was not trained "
        f"with it. At generation there are {generate}"
        for setting, value in asked_of_training.items()
    ]


def training_caption(
    caption: CaptionFunction, config: ConfigDict, decode: Decode
) -> CaptionFunction:
    """Returns the caption function of a training with its mitigations.

    Args:
      config: the `mitigation` section.
      decode: token ids to text.
    """
    train = config.train
    if train.multiple_captions:
        caption = multiple_captions(caption)
    rewrites = [
        (train.random_caption, random_caption(decode)),
        (train.random_tokens, random_tokens(train.num_insertions, decode)),
        (train.word_repetition, word_repetition(train.num_insertions)),
    ]
    active = [with_probability(p, rewrite) for p, rewrite in rewrites if p]
    return rewritten(caption, in_turn(active)) if active else caption


def training_embeddings(config: ConfigDict) -> Perturb:
    """Returns what a training does to text embeddings; `config` is `mitigation`."""
    return functools.partial(
        _perturb,
        noise=config.train.gaussian_noise,
        mixup=config.train.embedding_mixup,
    )


def _perturb(hidden, key, *, noise: float, mixup: float):
    noise_key, mixup_key = jax.random.split(key)
    hidden = mix_embeddings(hidden, mixup_key, mixup)
    return add_gaussian_noise(hidden, noise_key, noise)


def generation_mitigations(config: ConfigDict | None) -> GenerationMitigations:
    """Reads what acts between the text and the decoder.

    Args:
      config: the section `mitigation.generate`; what it does not mention is off, as all
        of it is for None.
    """
    section = {} if config is None else config.to_dict()
    known = GenerationMitigations._fields
    return GenerationMitigations(**{k: v for k, v in section.items() if k in known})


def generation_rewrite(config: ConfigDict, decode: Decode) -> Rewrite:
    """Returns what happens to a prompt before it is generated from.

    Args:
      config: the `mitigation` section.
      decode: token ids to text.
    """
    generate = config.generate
    return in_turn(
        [
            random_tokens(generate.random_tokens, decode),
            word_repetition(generate.word_repetition),
            random_numbers(generate.random_numbers),
        ]
    )
