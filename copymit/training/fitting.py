"""Settings that depend on the data: how long a training is, and which captions it shows."""

import logging

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

logger = logging.getLogger(__name__)


def fit_to_data(
    config: ConfigDict, caption_counts: Int[np.ndarray, " N"]
) -> ConfigDict:
    """Returns the settings with steps in place of epochs, and MC where captions vary.

    With epochs the warm-up takes a tenth of the steps at most.

    Args:
      caption_counts: of each training image.
    """
    config = config.copy_and_resolve_references()
    train = config.train
    for steps, epochs in (
        ("steps", "epochs"),
        ("evaluate_every_steps", "evaluate_every_epochs"),
    ):
        if train[epochs]:
            draws = train[epochs] * len(caption_counts)
            train[steps] = max(1, round(draws / train.batch_size))
            logger.info(
                "train.%s=%g: train.%s=%d", epochs, train[epochs], steps, train[steps]
            )
    if train.epochs:
        train.warmup_steps = min(train.warmup_steps, train.steps // 10)
    data = config.data
    used = data.use_all_captions and data.caption_style == "instance"
    if used and caption_counts.max() > 1:
        config.mitigation.train.multiple_captions = True
    return config
