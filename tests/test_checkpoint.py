"""Checkpoints come back bit for bit, whole or one item, and only into their model."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from copymit import storage
from copymit.checkpoint import (
    closing_checkpoints,
    has_frozen,
    open_checkpoints,
    restore_checkpoint,
    save_checkpoint,
    save_frozen,
)
from copymit.sharding import make_mesh, replicated
from copymit.storage import FullDiskError

POSITION = {"step": 3, "next_batch": 3}


def _items() -> dict:
    rng = np.random.default_rng(0)
    params = {
        "unet": {
            "conv_in.kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32),
            "conv_in.bias": jnp.asarray(rng.normal(size=8), jnp.bfloat16),
        },
        "text_encoder": {"embedding": jnp.asarray(rng.normal(size=(5, 2)))},
    }
    return {
        "params": params,
        "ema": {},
        "optimizer": {"state": [jnp.zeros(()), params], "step": jnp.int32(3)},
    }


def _abstract(tree):
    sharding = replicated(make_mesh())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _assert_equal(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A working directory with one checkpoint, of step 3."""
    workdir = tmp_path_factory.mktemp("run")
    with open_checkpoints(workdir) as manager:
        save_checkpoint(manager, 3, _items(), POSITION)
    return workdir


def test_what_was_saved_comes_back_bit_for_bit(workdir):
    items = _items()
    with open_checkpoints(workdir) as manager:
        assert manager.latest_step() == 3
        restored = restore_checkpoint(manager, 3, _abstract(items))
        position = manager.restore(
            3, args=ocp.args.Composite(position=ocp.args.JsonRestore())
        )
    _assert_equal(restored, items)
    assert position["position"] == POSITION


def test_one_item_can_be_read_without_the_others(workdir):
    items = {"params": _items()["params"]}
    with open_checkpoints(workdir, read_only=True) as manager:
        restored = restore_checkpoint(manager, 3, _abstract(items))
    _assert_equal(restored, items)


def test_arrays_are_restored_into_the_sharding_that_is_asked_for(workdir):
    wanted = _abstract({"params": _items()["params"]})
    with open_checkpoints(workdir, read_only=True) as manager:
        restored = restore_checkpoint(manager, 3, wanted)
    for array, like in zip(
        jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True
    ):
        assert array.sharding == like.sharding


def test_arrays_may_be_given_away_as_soon_as_saving_has_started(tmp_path):
    items = _items()
    with open_checkpoints(tmp_path) as manager:
        save_checkpoint(manager, 1, items, POSITION)
        for array in jax.tree.leaves(items):
            array.delete()  # as donation does
        manager.wait_until_finished()
        restored = restore_checkpoint(manager, 1, _abstract(_items()))
    _assert_equal(restored, _items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda unet: unet.update({"conv_in.bias": jnp.zeros(9)}),
            r"1 parameters differ: unet\.conv_in\.bias \(config \(9,\), "
            r"checkpoint \(8,\)\)",
        ),
        (
            lambda unet: unet.update({"conv_out.bias": jnp.zeros(4)}),
            r"unet\.conv_out\.bias \(config \(4,\), checkpoint none\)",
        ),
        (
            lambda unet: unet.pop("conv_in.kernel"),
            r"unet\.conv_in\.kernel \(config none, checkpoint \(3, 3, 4, 8\)\)",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_parameter(
    workdir, change, message
):
    params = _items()["params"]
    change(params["unet"])
    with (
        open_checkpoints(workdir, read_only=True) as manager,
        pytest.raises(ValueError, match=message) as failure,
    ):
        restore_checkpoint(manager, 3, _abstract({"params": params}))
    assert "Use the config that it was trained with" in str(failure.value)


def test_networks_that_do_not_train_are_saved_once_beside_the_steps(tmp_path):
    networks = _items()["params"]
    trained, frozen = ({k: networks[k]} for k in ("unet", "text_encoder"))
    assert not has_frozen(tmp_path, frozen)
    save_frozen(tmp_path, frozen)
    assert has_frozen(tmp_path, frozen)
    wanted = _abstract({"params": trained, "frozen": frozen})
    with open_checkpoints(tmp_path, keep=2) as manager:
        for step in (1, 2):
            save_checkpoint(manager, step, {"params": trained}, POSITION)
        manager.wait_until_finished()
        for step in (1, 2):
            restored = restore_checkpoint(manager, step, wanted)
            _assert_equal(restored, {"params": trained, "frozen": frozen})
        shutil.rmtree(tmp_path / "frozen")
        with pytest.raises(
            ValueError, match=r"frozen/text_encoder is missing: the run"
        ):
            restore_checkpoint(manager, 2, wanted)


def test_a_checkpoint_of_an_older_copymit_has_them_inside(workdir):
    networks = _items()["params"]
    items = {
        "params": {"unet": networks["unet"]},
        "frozen": {"text_encoder": networks["text_encoder"]},
    }
    with open_checkpoints(workdir, read_only=True) as manager:
        restored = restore_checkpoint(manager, 3, _abstract(items))
    _assert_equal(restored, items)


def test_an_older_copymit_had_two_halves_of_outputs_in_one_axis(tmp_path):
    def items(*halves):
        """Of a layer of 3 inputs and two times 4 outputs."""
        sizes = {"proj.kernel": (3, *halves), "proj.bias": halves, "other": (3, 8)}
        layer = {k: jnp.arange(np.prod(v)).reshape(v) * 1.0 for k, v in sizes.items()}
        params = {"unet": layer}
        moments = optax.scale_by_adam().init(params)._replace(mu=params)
        optimizer = {"state": (moments,), "step": jnp.int32(3)}
        frozen = {"vae": layer}
        return {"params": params, "ema": params, "optimizer": optimizer}, frozen

    saved, frozen = items(8)
    save_frozen(tmp_path, frozen)
    with open_checkpoints(tmp_path) as manager:
        save_checkpoint(manager, 3, saved, POSITION)
        manager.wait_until_finished()
        wanted, frozen = items(2, 4)
        wanted |= {"frozen": frozen}
        restored = restore_checkpoint(manager, 3, _abstract(wanted))
    _assert_equal(restored, wanted)


def test_a_checkpoint_without_room_is_refused_and_the_last_one_stays(
    tmp_path, monkeypatch
):
    items = {"params": {"unet": {"bias": jnp.ones(2000)}}}

    def save_twice() -> None:
        manager = open_checkpoints(tmp_path)
        with closing_checkpoints(manager):
            save_checkpoint(manager, 1, items, POSITION)
            few = SimpleNamespace(free=7999)
            monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: few)
            save_checkpoint(manager, 2, items, POSITION)

    with pytest.raises(FullDiskError, match=r"no room for .*/checkpoints/2 \(it takes"):
        save_twice()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_what_orbax_only_learns_of_later_leaves_nothing_unfinished(tmp_path):
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"

    def save() -> None:
        with closing_checkpoints(open_checkpoints(tmp_path)):
            unfinished.mkdir()
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    with pytest.raises(FullDiskError, match="no room for"):
        save()
    assert not unfinished.exists()


def test_what_a_kill_left_of_networks_that_do_not_train_goes(tmp_path):
    unfinished = tmp_path / "frozen" / "unet.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    save_frozen(tmp_path, {"unet": {"bias": jnp.ones(2)}})
    assert not unfinished.exists()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    items = {"params": {"unet": {"bias": jnp.ones(2)}}}
    with open_checkpoints(tmp_path, keep=2) as manager:
        for step in (1, 2, 3):
            save_checkpoint(manager, step, items, POSITION)
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]


def test_reading_changes_nothing_on_disk(workdir):
    before = sorted(workdir.rglob("*"))
    with open_checkpoints(workdir, read_only=True) as manager:
        restore_checkpoint(manager, 3, _abstract(_items()))
    assert sorted(workdir.rglob("*")) == before
