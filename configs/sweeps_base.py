"""What the sweeps have in common: data sets and costs of each preset, scores, seeds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from configs.sweeps_types import Score, Trial

SIMILARITY = Score("dataset similarity (95th percentile)", ("dataset_similarity",))
BACKGROUND = Score("training images, to each other", ("background_dataset_similarity",))
QUALITY = Score("FID (or Frechet distance)", ("fid", "fd_efficientnet_lite0"))
# The distance to the training images rewards copying them, this one does not.
QUALITY_HELDOUT = Score(
    "Frechet distance to held-out images",
    ("fid_to_heldout", "fd_efficientnet_lite0_to_heldout"),
)
COPIES = Score("share of copies", ("copied_share",), percent=True)
CLIP = Score("CLIP score", ("clip_score",))
HITS = Score("prompted image is the nearest", ("prompted_image_hits",), percent=True)
MEMORISED = Score(
    "mean similarity, memorised prompts",
    ("prompted_duplicated_similarity_mean", "similarity_mean"),
)
# Most prompts are of images that are not duplicated, so few of what duplication does
# shows in the numbers of all.
DUPLICATED = Score("similarity, duplicated", ("prompted_duplicated_similarity_mean",))
COPIES_OF_DUPLICATED = Score(
    "copies, duplicated", ("prompted_duplicated_copied_share",), percent=True
)
OF_DUPLICATED = (COPIES_OF_DUPLICATED, DUPLICATED)
BY_DUPLICATION = (
    COPIES_OF_DUPLICATED,
    Score(
        "copies, others",
        ("prompted_unduplicated_copied_share", "copied_share"),
        percent=True,
    ),
    DUPLICATED,
    Score(
        "similarity, others",
        ("prompted_unduplicated_similarity_mean", "similarity_mean"),
    ),
    Score(
        "by pixels, duplicated",
        ("pixels_prompted_duplicated_similarity_mean",),
    ),
    Score(
        "by pixels, others",
        ("pixels_prompted_unduplicated_similarity_mean", "pixels_similarity_mean"),
    ),
)

_DATASETS = {
    "small": {"emoji": "configs/demo.py"},
    "photos": {"photos": "configs/photos.py"},
    "photos_cpu": {"photos": "configs/photos.py:cpu"},
    "full": {"Imagenette": "configs/imagenette.py", "LAION-10k": "configs/laion10k.py"},
}
_TRAIN: dict[str, dict[str, Any]] = {
    # Three quarters of the demo: in as many steps, as many visits of each image. With
    # half of its steps or its batch hardly anything is memorised.
    "small": {
        "data.num_examples": 36,
        "data.num_heldout": 144,
        "train.batch_size": 6,
        "train.checkpoint_every_steps": 1_250,
        "train.evaluate_every_steps": 0,
    },
    # Latents, and embeddings of captions, are those of all trainings of the sweep.
    "photos": {"data.cache_dir": "../cache"},
    "photos_cpu": {"data.cache_dir": "../cache"},
    "full": {"data.cache_dir": "../cache"},
}
_EVALUATE: dict[str, dict[str, Any]] = {
    "small": {"eval.num_generations": 144, "eval.gallery_size": 12},
    "photos": {},
    "photos_cpu": {},
    "full": {
        "eval.embedders": ("sscd_dcr",),
        "eval.quality_embedders": ("inception_clean",),
        "eval.clip_score": "clip_vit_b16_dcr",
        "eval.weights.sscd_disc_large": "weights/sscd_disc_large.torchscript.pt",
        "eval.weights.inception": "weights/pt_inception-2015-12-05-6726825d.pth",
    },
}


class Setting(NamedTuple):
    """A point of a sweep, without its seed.

    Attributes:
      labels: what the table and the figures know it by.
      train, evaluate: settings that differ from the preset's.
      model: a published model, evaluated as it is.
    """

    labels: Mapping[str, Any]
    train: Mapping[str, Any] = {}
    evaluate: Mapping[str, Any] = {}
    model: str = ""


def datasets(preset: str) -> Mapping[str, str]:
    """Returns the config file of each data set by name."""
    return _DATASETS[preset]


def first_dataset(preset: str) -> str:
    """Returns the config of sweeps that the paper makes on Imagenette."""
    return next(iter(_DATASETS[preset].values()))


def expand(
    preset: str,
    seeds: Sequence[int],
    config: str,
    setting: Setting,
    analysis: Mapping[str, Any] | None = None,
) -> Iterator[Trial]:
    """Yields a trial of a setting for each seed.

    A seed chooses the images, which of them are duplicated, and the initial weights. Of
    a published model it chooses prompts and noise.
    """
    name = "_".join(f"{key}-{value}" for key, value in setting.labels.items())
    for seed in seeds:
        train = {**_TRAIN[preset], **setting.train}
        evaluate = {**_EVALUATE[preset], **setting.evaluate}
        if setting.model:
            evaluate["eval.seed"] = seed
        else:
            train["seed"] = seed
        yield Trial(
            _plain(f"{name}_seed-{seed}"),
            config,
            train,
            evaluate,
            {**setting.labels, "seed": seed},
            setting.model,
            analysis,
        )


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._+-" else "-" for c in name).lstrip(
        "._+-"
    )
