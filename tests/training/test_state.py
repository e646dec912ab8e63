"""The learning rate, the optimizer and the state against closed forms."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from copymit.models.assembly import make_model
from copymit.models.lora import assemble
from copymit.sharding import make_mesh
from copymit.training.state import (
    abstract_state,
    init_state,
    make_learning_rate,
    make_optimizer,
)
from copymit.training.step import _update_ema


@pytest.fixture
def config():
    return tiny.get_config()


def test_the_learning_rate_rises_evenly_and_then_stays(config):
    config.train.update(steps=100, warmup_steps=10, learning_rate=0.5)
    config.train.learning_rate_schedule = "constant"
    rate = make_learning_rate(config.train)
    rates = [float(rate(step)) for step in range(100)]
    np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11), rtol=1e-6)
    np.testing.assert_allclose(rates[10:], 0.5)


def test_the_cosine_schedule_falls_from_the_peak_to_zero(config):
    config.train.update(steps=110, warmup_steps=10, learning_rate=2.0)
    config.train.learning_rate_schedule = "cosine"
    rate = make_learning_rate(config.train)
    halfway, end = float(rate(60)), float(rate(110))
    assert float(rate(10)) == pytest.approx(2.0)
    assert halfway == pytest.approx(1.0, rel=1e-5)
    assert end == pytest.approx(0.0, abs=1e-6)


def test_the_linear_and_the_polynomial_schedule_fall_to_zero(config):
    config.train.update(steps=110, warmup_steps=10, learning_rate=2.0)
    left = 1 - np.arange(101) / 100
    for schedule, power in (("linear", 1), ("polynomial", 3)):
        config.train.learning_rate_schedule = schedule
        config.train.learning_rate_power = 3.0
        rate = make_learning_rate(config.train)
        rates = [float(rate(step)) for step in range(10, 111)]
        np.testing.assert_allclose(rates, 2.0 * left**power, atol=1e-6)


def test_an_unknown_schedule_is_named(config):
    config.train.learning_rate_schedule = "triangle"
    with pytest.raises(
        ValueError, match=r"'triangle' is not known: use one of constant"
    ):
        make_learning_rate(config.train)


def test_a_warm_up_longer_than_the_run_is_refused(config):
    config.train.update(steps=5, warmup_steps=6)
    with pytest.raises(ValueError, match=r"warmup_steps=6 .* train.steps=5"):
        make_learning_rate(config.train)


def test_the_first_update_is_adamw_of_the_clipped_gradient(config):
    config.train.update(
        steps=10,
        warmup_steps=0,
        learning_rate=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
    )
    config.train.learning_rate_schedule = "constant"
    optimizer = make_optimizer(config.train)
    params = {"w": jnp.array([1.0, -2.0])}
    updates, _ = optimizer.update(
        {"w": jnp.array([30.0, -40.0])}, optimizer.init(params), params
    )
    # After bias correction the first step of Adam is the sign of the gradient.
    expected = -0.1 * (np.array([1.0, -1.0]) + 0.01 * np.array([1.0, -2.0]))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_the_moving_average_is_warmed_up(config):
    mesh = make_mesh()
    model = make_model(config.model, config.data.resolution, "float32")
    state = init_state(model, make_optimizer(config.train), config, mesh)
    state = state._replace(ema={"unet": {"w": jnp.zeros(())}})
    params = {"unet": {"w": jnp.ones(())}}
    first = _update_ema(state, params, 0.9)
    # Step 0 keeps (1 + 0) / (10 + 0) of the old average.
    assert float(first["unet"]["w"]) == pytest.approx(0.9)
    late = state._replace(step=jnp.asarray(10_000))
    assert float(_update_ema(late, params, 0.9)["unet"]["w"]) == pytest.approx(0.1)


@pytest.mark.parametrize("trained", [True, False])
def test_the_text_encoder_is_trained_or_frozen_by_config(config, trained):
    config.model.text_encoder.train = trained
    model = make_model(config.model, config.data.resolution, "float32")
    optimizer = make_optimizer(config.train)
    state = abstract_state(model, optimizer, config, make_mesh())
    assert ("text_encoder" in state.params) is trained
    assert ("text_encoder" in state.frozen) is not trained
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params))


def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(config):
    model = make_model(config.model, config.data.resolution, "float32")
    optimizer, mesh = make_optimizer(config.train), make_mesh()
    name = "conv_in.kernel"
    first = init_state(model, optimizer, config, mesh).params["unet"][name]
    again = init_state(model, optimizer, config, mesh).params["unet"][name]
    config.seed += 1
    other = init_state(model, optimizer, config, mesh).params["unet"][name]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_optimizer_starts_where_optax_starts_it_and_the_average_at_the_parameters(
    config,
):
    model = make_model(config.model, config.data.resolution, "float32")
    optimizer, mesh = make_optimizer(config.train), make_mesh()
    state = init_state(model, optimizer, config, mesh)
    abstract = abstract_state(model, optimizer, config, mesh)
    jax.tree.map(
        np.testing.assert_array_equal, state.opt_state, optimizer.init(state.params)
    )
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )


def test_networks_that_are_given_are_kept_and_the_others_drawn_as_ever(config):
    model = make_model(config.model, config.data.resolution, "float32")
    optimizer, mesh = make_optimizer(config.train), make_mesh()
    alone = init_state(model, optimizer, config, mesh).params
    given = {"text_encoder": jax.tree.map(lambda x: x + 1, alone["text_encoder"])}
    state = init_state(model, optimizer, config, mesh, given)
    jax.tree.map(np.testing.assert_array_equal, state.params, alone | given)


def test_lora_trains_products_beside_layers_that_stay(config):
    config.train.lora_rank = 2
    model = make_model(config.model, config.data.resolution, "float32")
    optimizer, mesh = make_optimizer(config.train), make_mesh()
    state = init_state(model, optimizer, config, mesh)
    assert state.params.keys() == {"unet", "text_encoder"} == state.frozen.keys()
    attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    first, second = (state.params["unet"][f"{attention}.lora_{x}.kernel"] for x in "AB")
    assert (first.shape, second.shape) == ((32, 2), (2, 32))
    assert float(np.std(first)) == pytest.approx(0.5, rel=0.3)
    # What is drawn for the networks themselves is as without.
    config.train.lora_rank = 0
    whole = init_state(model, make_optimizer(config.train), config, mesh).params
    jax.tree.map(np.testing.assert_array_equal, state.frozen, whole)
    jax.tree.map(
        np.testing.assert_array_equal, assemble(state.params, state.frozen), whole
    )


def test_a_target_that_no_layer_has_is_named(config):
    config.train.update(lora_rank=2, lora_targets=("to_q",))
    model = make_model(config.model, config.data.resolution, "float32")
    with pytest.raises(ValueError, match=r"=to_q names no layer of the text_encoder"):
        abstract_state(model, make_optimizer(config.train), config, make_mesh())


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_small_moments_lie_where_their_parameters_lie(config, dtype):
    config.train.moments_dtype = dtype
    model = make_model(config.model, config.data.resolution, "float32")
    optimizer, mesh = make_optimizer(config.train), make_mesh()
    state = init_state(model, optimizer, config, mesh)
    abstract = abstract_state(model, optimizer, config, mesh)
    jax.tree.map(lambda x, a: (x.sharding == a.sharding) or 1 / 0, state, abstract)
    moments = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    params = sum(x.nbytes for x in jax.tree.leaves(state.params))
    assert moments / params < {"bfloat16": 1.05, "float8": 0.7}[dtype]


_ON_8_DEVICES = """
import hashlib, json, jax, numpy as np
from configs import tiny
from copymit.models.assembly import make_model
from copymit.sharding import make_mesh
from copymit.training.state import abstract_state, init_state, make_optimizer
config = tiny.get_config()
model = make_model(config.model, config.data.resolution, "float32")
optimizer = make_optimizer(config.train)
mesh = make_mesh(data=2, fsdp=2, tensor=2)
state = init_state(model, optimizer, config, mesh)
abstract = abstract_state(model, optimizer, config, mesh)
jax.tree.map(lambda x, a: (x.sharding == a.sharding) or 1 / 0, state, abstract)
embedding = "text_model.embeddings.token_embedding.embedding"
print(json.dumps({
    "whole": hashlib.sha256(
        b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state.params))
    ).hexdigest(),
    "share": state.params["text_encoder"][embedding].addressable_shards[0].data.shape,
}))
"""


def test_the_parameters_do_not_depend_on_the_devices_that_hold_them(config, on_devices):
    model = make_model(config.model, config.data.resolution, "float32")
    state = init_state(model, make_optimizer(config.train), config, make_mesh())
    leaves = jax.tree.leaves(state.params)
    found = on_devices(8, "-c", _ON_8_DEVICES)
    whole = b"".join(np.asarray(x).tobytes() for x in leaves)
    assert found["whole"] == hashlib.sha256(whole).hexdigest()
    assert found["share"] == [49_408 // 2, 32]
