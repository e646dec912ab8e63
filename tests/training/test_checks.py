"""What the `train` section may not say, and what it is warned of."""

import logging
from types import SimpleNamespace

import pytest

from configs import tiny
from copymit.training.checks import check_settings, warn_of_whole_heads


def mesh(data=1, fsdp=1, tensor=1):
    return SimpleNamespace(shape={"data": data, "fsdp": fsdp, "tensor": tensor})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate_steps": 0}, r"accumulate_steps=0 must be at least 1"),
        (
            {"batch_size": 24, "accumulate_steps": 5},
            r"batch_size=24 in train.accumulate_steps=5 parts .* a multiple of 40",
        ),
        ({"noise_offset": -0.1}, r"noise_offset=-0.1 must be above 0, or 0 for none"),
        ({"lora_rank": -1}, r"lora_rank=-1 must be above 0"),
        ({"profile_steps": -1}, r"profile_steps=-1 must be at least 1, or 0 for never"),
        ({"epochs": -1.0}, r"epochs=-1.0 must be above 0, or 0 for steps to say it"),
        ({"stop_above_copied_share": 2.0}, r"share=2.0 must be in \[0, 1\]"),
        (
            {"stop_above_copied_share": 0.1},
            r"share=0.1 is of what is measured .* set train.evaluate_every_steps or",
        ),
        ({"learning_rate_power": 0.0}, r"learning_rate_power=0.0 must be above 0"),
    ],
)
def test_what_would_fail_later_is_refused(changes, message):
    config = tiny.get_config().train
    config.update(batch_size=16)
    check_settings(config, mesh(data=4, fsdp=2))
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        check_settings(config, mesh(data=4, fsdp=2))


@pytest.mark.parametrize(
    ("heads", "tensor", "warned"),
    [
        ((5, 10, 20, 3), 5, ""),
        ((5, 10, 20, 20), 4, "5, 10"),
        (4, 2, ""),
        (4, 3, "4, 4"),
    ],
)
def test_heads_that_do_not_divide_are_warned_of(caplog, heads, tensor, warned):
    unet = tiny.get_config().model.unet
    with unet.unlocked(), unet.ignore_type():
        unet.num_attention_heads = heads
        unet.cross_attention = (True,) * 3 + (False,)
        if isinstance(heads, int):
            unet.cross_attention = (True, True)
    with caplog.at_level(logging.WARNING):
        warn_of_whole_heads(unet, mesh(tensor=tensor))
    if warned:
        assert f"does not divide {warned} attention heads" in caplog.text
    else:
        assert not caplog.text
