"""A checkpoint that is not whole is called so, not of another config."""

import jax
import jax.numpy as jnp
import pytest

from copymit.checkpoint import open_checkpoints, restore_checkpoint, save_checkpoint


def test_an_empty_step_is_not_blamed_on_the_config(tmp_path):
    items = {"params": {"x": jnp.zeros(2)}}
    with open_checkpoints(tmp_path) as checkpoints:
        save_checkpoint(checkpoints, 3, items, {"step": 3})
    (tmp_path / "checkpoints" / "5").mkdir()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), items)
    with open_checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 5
        with pytest.raises(ValueError, match="5 is not a whole checkpoint"):
            restore_checkpoint(checkpoints, 5, abstract)
