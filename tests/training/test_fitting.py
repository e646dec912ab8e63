"""Lengths and captions that depend on how many images there are."""

import numpy as np
import pytest

from configs import common
from copymit.training.fitting import fit_to_data


def config(**changes):
    config = common.get_config()
    config.train.batch_size = 8
    config.update_from_flattened_dict(changes)
    return config


def test_epochs_become_steps_and_steps_alone_stay():
    changes = {"train.epochs": 20.0, "train.evaluate_every_epochs": 2.5}
    asked = config(**changes)
    found = fit_to_data(asked, np.ones(100, int))
    assert (found.train.steps, found.train.evaluate_every_steps) == (250, 31)
    assert (found.train.warmup_steps, asked.train.warmup_steps) == (25, 500)
    assert asked.train.steps == 10_000
    as_it_is = fit_to_data(config(), np.ones(100, int))
    assert as_it_is.to_dict() == config().to_dict()
    assert (
        fit_to_data(config(**{"train.epochs": 0.01}), np.ones(3, int)).train.steps == 1
    )


@pytest.mark.parametrize(
    ("counts", "used"), [([1, 1, 1], False), ([1, 5, 1], True), ([0, 0, 0], False)]
)
def test_all_captions_are_used_where_images_have_several(counts, used):
    found = fit_to_data(config(**{"data.use_all_captions": True}), np.array(counts))
    assert found.mitigation.train.multiple_captions == used
    asked = config(**{"data.use_all_captions": True, "data.caption_style": "fixed"})
    found = fit_to_data(asked, np.array(counts))
    assert not found.mitigation.train.multiple_captions
    assert not fit_to_data(
        config(), np.array(counts)
    ).mitigation.train.multiple_captions
