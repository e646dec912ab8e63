"""Embeddings descend the magnitude of a linear network, where all is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from copymit.diffusion.sampler import Step
from copymit.mitigation.methods.prompt_optimisation import optimise_prompts

B, L, D = 3, 4, 12
# Norms are as of 64x64x4 numbers, here of 12.
UNIT = (64 * 64 * 4 / 12) ** 0.5


def network(noisy_latents, timesteps, hidden):
    """Adds the tokens up; the gradient is the same for every token."""
    del timesteps
    return hidden.astype(jnp.float32).sum(1).reshape(noisy_latents.shape)


STEP = Step(jnp.array(0), jnp.array(999), 0.1, 0.9, jnp.zeros((B, 2, 2, 3)))


@pytest.fixture
def hidden(rng):
    return jnp.asarray(rng.normal(size=(B, L, D)), jnp.float32)


def optimise(hidden, unconditional=None, **options):
    step = STEP._replace(noisy_latents=jnp.zeros((len(hidden), 2, 2, 3)))
    if unconditional is None:
        unconditional = jnp.zeros_like(step.noisy_latents)
    options["target"] *= UNIT
    found = optimise_prompts(network, hidden, unconditional, step, "epsilon", **options)
    return found.position


def magnitudes(hidden) -> np.ndarray:
    return np.linalg.norm(np.asarray(hidden.astype(jnp.float32)).sum(1), axis=1)


def test_the_first_step_is_that_of_adamw(hidden):
    moved = optimise(hidden, target=1e-3, learning_rate=0.05, max_iterations=1)
    sign = np.sign(np.asarray(hidden).sum(1, keepdims=True))
    expected = np.array(hidden) - 0.05 * (sign + 0.01 * np.asarray(hidden))
    expected[:, 0] = hidden[:, 0]
    # Adam's epsilon of 1e-8 beside gradients of about 0.3, and float32.
    np.testing.assert_allclose(moved, expected, atol=2e-6)
    assert np.array_equal(moved[:, 0], hidden[:, 0])  # the start token stays


def test_it_equals_the_optimiser_of_the_paper_s_code(hidden):
    torch = pytest.importorskip("torch")
    ours = optimise(hidden, target=2.0)
    for i in range(B):
        x = torch.tensor(np.asarray(hidden[i]), requires_grad=True)
        optimizer = torch.optim.AdamW([x], lr=0.05)
        for _ in range(10):
            loss = x.sum(0).norm()
            if loss.item() <= 2.0:
                break
            optimizer.zero_grad()
            loss.backward()
            x.grad[0] = 0
            optimizer.step()
            # Their start token has no gradient but decays all the same, by 0.05 %.
            x.data[0] = torch.tensor(np.asarray(hidden[i, 0]))
        # float32 through Adam's quotients of gradients.
        np.testing.assert_allclose(ours[i], x.detach().numpy(), atol=1e-5)


def test_the_magnitude_falls_to_the_target(hidden):
    assert magnitudes(hidden).min() > 2.5
    moved = optimise(hidden, target=2.0, max_iterations=50)
    after = magnitudes(moved)
    assert (after <= 2.0).all()
    # One step of 3 tokens x 12 components x 0.05 moves the norm by 0.52 at most.
    assert (after > 2.0 - 0.53).all()


def test_prompts_below_the_target_are_left_as_they_were(hidden):
    target = float(np.sort(magnitudes(hidden))[1])
    moved = optimise(hidden, target=target + 1e-3)
    same = (np.asarray(moved) == np.asarray(hidden)).all(axis=(1, 2))
    assert same.tolist() == (magnitudes(hidden) <= target + 1e-3).tolist()


def test_a_prompt_does_not_depend_on_its_batch(hidden):
    together = np.asarray(optimise(hidden, target=2.5))
    for i in range(B):
        alone = optimise(hidden[i : i + 1], target=2.5)
        # One program a batch size: float32 sums in another order.
        np.testing.assert_allclose(np.asarray(alone)[0], together[i], atol=1e-6)


def test_the_dtype_stays(hidden):
    moved = optimise(hidden.astype(jnp.bfloat16), target=2.0)
    assert moved.dtype == jnp.bfloat16
    assert (magnitudes(moved) < magnitudes(hidden)).all()


def test_a_prompt_like_no_prompt_at_all_has_a_gradient_of_zero(hidden):
    nothing = network(STEP.noisy_latents, None, hidden)
    moved = optimise(hidden, nothing, target=1e-6)
    np.testing.assert_array_equal(moved, hidden)
