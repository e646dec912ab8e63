"""How long a compilation takes and how much a step computes, by counting."""

import jax
import jax.numpy as jnp
import pytest

from configs import tiny
from copymit.chips import CHIPS
from copymit.models.assembly import make_model
from copymit.training import compilation
from copymit.training.compilation import count_equations, model_flops, seconds_at_peak


def test_equations_are_counted_inside_calls_and_loops():
    def function(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c) * 2, None), x, None, length=9)[0]

    jaxpr = jax.make_jaxpr(jax.jit(function))(1.0).jaxpr
    assert count_equations(jaxpr) == 1 + 1 + 2


def test_what_trains_counts_three_times_and_what_is_cached_not_at_all():
    config = tiny.get_config()
    model = make_model(config.model, config.data.resolution, "float32")
    ids = jax.ShapeDtypeStruct((8, 8), jnp.int32)
    moments = jax.ShapeDtypeStruct((8, 8, 8, 12), jnp.float32)
    hidden = jax.ShapeDtypeStruct((8, 8, 32), jnp.float32)
    cached = model_flops(
        model, {"moments": moments, "encoder_hidden_states": hidden}, config
    )
    trained = model_flops(model, {"moments": moments, "input_ids": ids}, config)
    config.model.text_encoder.train = False
    frozen = model_flops(model, {"moments": moments, "input_ids": ids}, config)
    assert 0 < cached < frozen < trained
    assert trained - cached == 3 * (frozen - cached)


def test_the_time_at_the_peak_is_that_of_all_devices_where_they_are_known(monkeypatch):
    config = tiny.get_config()
    model = make_model(config.model, config.data.resolution, "float32")
    batch = {
        "moments": jax.ShapeDtypeStruct((8, 8, 8, 12), jnp.float32),
        "encoder_hidden_states": jax.ShapeDtypeStruct((8, 8, 32), jnp.float32),
    }
    assert seconds_at_peak(model, batch, config) is None
    monkeypatch.setattr(compilation, "find_chip", lambda kind: CHIPS[0])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    expected = model_flops(model, batch, config) / (4 * CHIPS[0].bf16_flops)
    assert seconds_at_peak(model, batch, config) == pytest.approx(expected)
