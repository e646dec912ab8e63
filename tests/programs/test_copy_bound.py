"""The training program ends where copying begins, and stays ended."""

import pytest

from configs import tiny
from copymit.metrics import read_metrics
from copymit.training.loop import train


@pytest.fixture
def config():
    config = tiny.get_config()
    config.data.num_examples = config.train.batch_size = 4
    config.data.num_heldout = 0
    config.model.autoencoder.patch_size = 8
    config.model.unet.block_out_channels = (8,)
    config.model.unet.cross_attention = (False,)
    config.train.ema_decay = 0.0
    config.train.learning_rate_schedule = "constant"
    config.train.epochs = 8.0
    config.train.evaluate_every_epochs = 2.0
    config.train.checkpoint_every_steps = 1
    config.train.sample_every_steps = 0
    config.train.stop_above_copied_share = 0.1
    return config


def test_a_training_ends_where_copying_begins_and_goes_on_under_a_higher_bound(
    config, tmp_path, caplog
):
    shares = {2: 0.0, 4: 0.05, 6: 0.5, 8: 0.5}

    def make_monitor(*_):
        return lambda networks, step: {"online_copied_share": shares[step]}

    def checkpoints():
        return sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())

    train(config, tmp_path, make_monitor)
    assert checkpoints() == [4]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert "ended: at step 6, 50% of what is drawn are copies" in caplog.text
    caplog.clear()
    assert int(train(config, tmp_path, make_monitor).step) == 4
    assert "ended: at step 6" in caplog.text
    config.train.stop_above_copied_share = 0.6
    train(config, tmp_path, make_monitor)
    assert checkpoints() == [8]
