"""The start token gains, padding loses, the negative half keeps its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.mitigation.methods.attention_rescaling import rescale_start
from copymit.mitigation.methods.padding_mask import mask_padding, text_lengths

END = 49_407
IDS = jnp.array([[49_406, 5, 6, END, END, END], [49_406, END, 0, 0, 0, 0]])


def test_lengths_count_to_the_first_end_token():
    assert text_lengths(IDS).tolist() == [4, 2]


def test_a_text_without_an_end_is_as_long_as_the_row():
    assert text_lengths(jnp.ones((1, 6), jnp.int32)).tolist() == [6]


@pytest.fixture
def logits(rng):
    return jnp.asarray(rng.normal(size=(2, 3, 5, 6)), jnp.float32)


PROMPTS = jnp.array([False, True])


def test_a_factor_of_one_changes_nothing(logits):
    control = rescale_start(1.0, jnp.array([True, True]))
    np.testing.assert_array_equal(control("layer", logits), logits)


def test_logits_of_the_start_token_are_multiplied_in_their_rows_alone(logits):
    rescaled = np.asarray(rescale_start(1.25, PROMPTS)("layer", logits))
    expected = np.array(logits)
    expected[1, :, :, 0] *= 1.25
    np.testing.assert_array_equal(rescaled, expected)


def test_tokens_after_the_end_get_no_attention_and_the_others_all_of_it(logits):
    control = mask_padding(text_lengths(IDS))
    weights = np.asarray(jax.nn.softmax(control("layer", logits), axis=-1))
    assert not weights[0, ..., 4:].any()
    assert not weights[1, ..., 2:].any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert weights[0, ..., :4].min() > 0


def test_both_equal_the_paper_s_code_in_either_order(logits):
    torch = pytest.importorskip("torch")
    # Their batch is (negative, prompt); one prompt of length 4 masks both.
    weight = torch.tensor(np.asarray(logits)).clone()
    weight[..., 4:] = float("-inf")
    weight[1::2, :, :, 0] = weight[1::2, :, :, 0] * 1.25
    expected = torch.softmax(weight, dim=-1).numpy()
    start, mask = rescale_start(1.25, PROMPTS), mask_padding(jnp.array([4, 4]))
    for first, second in ((start, mask), (mask, start)):
        ours = jax.nn.softmax(second("layer", first("layer", logits)), axis=-1)
        np.testing.assert_allclose(ours, expected, atol=1e-6)
